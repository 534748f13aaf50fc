"""What the platform promises."""

from mainboard.testing import Requirements

REQUIREMENTS = Requirements("broken", devices=4, operators={"attention"}, drawn_cases=8)
