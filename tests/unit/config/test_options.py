"""The controller's command line."""

import math
from pathlib import Path

import pytest

from headrace_server.config import GENERAL, ServerConfig, parse


def test_defaults_listen_on_loopback() -> None:
    config = parse([], {})
    assert config.listen == "127.0.0.1:50151"
    assert config.keep_alive == 300.0
    assert config.home == Path.home() / ".headrace"


def test_the_environment_stands_in_and_options_win() -> None:
    env = {"HEADRACE_HOST": "unix:/tmp/a.sock", "HEADRACE_HOME": "/srv/models"}
    assert parse([], env).listen == "unix:/tmp/a.sock"
    assert parse([], env).home == Path("/srv/models")
    assert parse(["--listen", "localhost:0"], env).listen == "localhost:0"


def test_a_host_alone_gets_the_port_that_clients_use() -> None:
    assert parse([], {"HEADRACE_HOST": "localhost"}).listen == "localhost:50151"


@pytest.mark.parametrize("listen", ["0.0.0.0:50151", "192.168.0.7:1", "[::]:50151"])
def test_beyond_this_machine_only_when_told(
    listen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--listen", listen], {})
    assert exit_.value.code == 2
    assert "--insecure" in capsys.readouterr().err
    assert parse(["--listen", listen, "--insecure"], {}).listen == listen


def test_metrics_beyond_this_machine_only_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([], {}).metrics_listen is None
    assert parse(["--metrics-listen", "127.0.0.1:9464"], {}).metrics_listen == "127.0.0.1:9464"
    with pytest.raises(SystemExit):
        parse(["--metrics-listen", "0.0.0.0:9464"], {})
    told = capsys.readouterr().err
    assert "--metrics-listen: 0.0.0.0:9464" in told
    assert "--insecure" in told
    wide = parse(["--metrics-listen", "0.0.0.0:9464", "--insecure"], {})
    assert wide.metrics_listen == "0.0.0.0:9464"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("5m", 300.0), ("1.5h", 5400.0), ("-1", math.inf)]
)
def test_keep_alive(text: str, seconds: float) -> None:
    assert parse([f"--keep-alive={text}"], {}).keep_alive == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("8GB", 8 * 10**9), ("1.5GiB", 3 << 29), ("512mib", 1 << 29)]
)
def test_memory(text: str, size: int) -> None:
    assert parse(["--memory", text], {}).memory == size


@pytest.mark.parametrize(
    "wrong",
    [
        ["--listen", "nowhere:port"],
        ["--home", "~nosuchuser/x"],
        ["--config", "~nosuchuser/x"],
        ["--metrics-listen", "9464"],
        ["--metrics-listen", "unix:/tmp/m.sock"],
        ["--listen", "unix:relative.sock"],
        ["--listen", "unix:/" + 120 * "x"],
        ["--listen", "localhost:70000"],
        ["--memory", "much"],
        ["--memory", "0"],
        ["--keep-alive", "soon"],
        ["--grace", "-1"],
        ["--max-concurrency", "0"],
        ["--stall-timeout", "0"],
        ["--stall-timeout", "300h"],
        ["--threads", "2.5"],
        ["--context", "9" * 5000],
        ["--memory", "9" * 400],
        ["--dtype", "bfloat16"],
        ["--preload", "No Name"],
    ],
)
def test_what_is_wrong_is_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse([f"{wrong[0]}={wrong[1]}"], {})
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_parser_and_the_settings_agree_on_every_default() -> None:
    parsed, default = parse([], {}), ServerConfig(home=Path.home() / ".headrace")
    assert parsed == default


def test_what_is_said_several_times_is_one_list() -> None:
    assert parse(["--preload", "a", "--preload", "b:1"], {}).preload == ("a", "b:1")
    assert parse(["--preload", ""], {"HEADRACE_PRELOAD": "a"}).preload == ()


def test_a_switch_goes_both_ways() -> None:
    assert parse(["--no-drafts"], {}).drafts is False
    assert parse(["--drafts"], {"HEADRACE_DRAFTS": "off"}).drafts is True


def test_help_names_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    shown = " ".join(capsys.readouterr().out.split())
    for setting in GENERAL:
        assert setting.option in shown
    assert "80% of what is available" in shown


def test_with_tls_an_address_may_be_beyond_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    tls = ["--tls-cert", "/a.crt", "--tls-key", "/a.key"]
    config = parse(["--listen", "0.0.0.0:1", *tls, "--tls-client-ca", "/ca.crt"], {})
    assert (config.tls_cert, config.tls_key) == (Path("/a.crt"), Path("/a.key"))
    assert config.tls_client_ca == Path("/ca.crt")
    with pytest.raises(SystemExit):  # Metrics have no TLS.
        parse(["--listen", "0.0.0.0:1", *tls, "--metrics-listen", "0.0.0.0:2"], {})
    assert "--metrics-listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tls-cert", "/a.crt"], "--tls-key"),
        (["--tls-key", "/a.key"], "--tls-cert"),
        (["--tls-client-ca", "/ca.crt"], "--tls-cert"),
        (["--tls-cert", "/a", "--tls-key", "/b", "--takeover"], "unix:/path"),
    ],
)
def test_tls_has_all_its_files(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(options, {})
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "env", "place", "remedy"),
    [
        ([], {"HEADRACE_HOST": "https://localhost"}, "HEADRACE_HOST", "localhost:50151"),
        ([], {"HEADRACE_HOST": "HTTPS://gpu.example:7"}, "HEADRACE_HOST", "127.0.0.1:50151"),
        (["--listen", "https://127.0.0.1:1"], {}, "--listen", "127.0.0.1:1"),
    ],
)
def test_https_is_not_listened_for_in_the_clear(
    options: list[str],
    env: dict[str, str],
    place: str,
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for insecure in ([], ["--insecure"]):
        with pytest.raises(SystemExit) as exit_:
            parse([*options, *insecure], env)
        assert exit_.value.code == 2
        told = capsys.readouterr().err
        assert f"{place}: https://" in told
        assert f"--listen {remedy}\n" in told
    tls = ["--tls-cert", "/a.crt", "--tls-key", "/a.key"]
    assert parse([*options, *tls], env).tls_cert == Path("/a.crt")
    assert parse(["--listen", "localhost:1"], env).listen == "localhost:1"


def test_an_empty_path_is_none() -> None:
    env = {"HEADRACE_TOKENS": "/etc/tokens.json"}
    assert parse([], env).tokens == Path("/etc/tokens.json")
    assert parse(["--tokens", ""], env).tokens is None
