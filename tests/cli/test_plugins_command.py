"""`mainboard plugins`: what is installed and how it loads."""


def only_plugin(ran) -> dict:
    """The one plugin of a report."""
    (row,) = ran.json["plugins"]
    return row


def test_a_plugin_that_loads(mainboard, plugin) -> None:
    """A sound plugin is listed with everything that identifies it, and was called."""
    ran = mainboard("plugins", "--json", path=(plugin("pass"),))
    row = only_plugin(ran)
    assert (ran.code, row["state"], row["error"]) == (0, "called", None)
    identity = [row[key] for key in ("group", "name", "value", "distribution", "version")]
    assert identity == ["vllm.general_plugins", "acme", "acme:register", "acme-plugin", "1.5"]
    assert row["milliseconds"] > 0


def test_a_plugin_that_raises(mainboard, plugin) -> None:
    """A plugin that raises gives exit status 1, with distribution, cause and remedy."""
    ran = mainboard("plugins", path=(plugin("raise OSError('no licence server')"),))
    assert ran.code == 1
    assert "Plugin 'acme' of acme-plugin 1.5 (acme:register) failed: OSError" in ran.out
    assert "pip uninstall acme-plugin" in ran.out


def test_a_plugin_that_exits(mainboard, plugin) -> None:
    """A plugin that ends the program does not end this one."""
    ran = mainboard("plugins", "--json", path=(plugin("raise SystemExit(0)"),))
    assert (ran.code, only_plugin(ran)["state"]) == (1, "failed")


def test_a_plugin_that_prints(mainboard, plugin) -> None:
    """What plugins print, by Python or below it, does not get into the report."""
    body = "import os\nprint('hello')\nos.write(1, b'hello from below')"
    ran = mainboard("plugins", "--json", path=(plugin(body),))
    assert only_plugin(ran)["state"] == "called"
    assert "hello" in ran.err
    assert "hello from below" in ran.err


def test_listing_runs_no_code(mainboard, plugin, tmp_path) -> None:
    """`--no-load` lists a plugin without importing or calling it."""
    folder = plugin(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    ran = mainboard("plugins", "--json", "--no-load", path=(folder,))
    assert (ran.code, only_plugin(ran)["state"]) == (0, "found")
    assert not (tmp_path / "ran").exists()
    mainboard("plugins", path=(folder,))
    assert (tmp_path / "ran").exists()


def test_a_filtered_plugin(mainboard, plugin) -> None:
    """A plugin that `VLLM_PLUGINS` leaves out is listed as filtered and not run."""
    folder = plugin("raise OSError('must not run')")
    ran = mainboard("plugins", "--json", path=(folder,), VLLM_PLUGINS="")
    assert (ran.code, only_plugin(ran)["state"]) == (0, "filtered")
    assert ran.json["allowed"] == []


def test_a_name_that_nothing_provides(mainboard, plugin) -> None:
    """A name in `VLLM_PLUGINS` that nothing answers to gives exit status 1 and what to do."""
    ran = mainboard("plugins", path=(plugin("pass"),), VLLM_PLUGINS="acme,acmee")
    assert ran.code == 1
    assert "VLLM_PLUGINS lists 'acmee', which no installed distribution provides" in ran.out
