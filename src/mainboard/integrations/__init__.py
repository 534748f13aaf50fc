"""Mainboard inside other people's libraries, each on request and none imported from here."""
