"""File, environment and command line together: who wins, and what is said of mistakes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.config import (
    SETTINGS,
    ConfigError,
    Effective,
    ServerConfig,
    Sources,
    as_toml,
    changes,
    taken_over,
)
from headrace_server.config.problems import line_of


def read(path: Path, text: str, *argv: str, **env: str) -> Effective:
    """The configuration with a file of this text."""
    path.write_text(text, encoding="utf-8")
    return Sources(["--config", str(path), *argv], env).read()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def mistakes(path: Path, text: str, *argv: str, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path, text, *argv, **env)
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


def test_options_win_over_the_environment_and_it_over_the_file(file: Path) -> None:
    text = 'keep_alive = "1m"\nqueue_total = 7\nmemory = "1GiB"\n'
    env = {"HEADRACE_KEEP_ALIVE": "2m", "HEADRACE_QUEUE_TOTAL": "8"}
    effective = read(file, text, "--keep-alive", "3m", **env)
    config = effective.config
    assert (config.keep_alive, config.queue_total, config.memory) == (180.0, 8, 1 << 30)
    assert effective.origins["", "keep_alive"] == "--keep-alive"
    assert effective.origins["", "queue_total"] == "HEADRACE_QUEUE_TOTAL"
    assert effective.origins["", "memory"] == f"{file}:3"
    assert effective.origins["", "grace"] == "default"


def test_values_are_as_toml_has_them_or_as_options_have_them(file: Path) -> None:
    text = """
        grace = 2.5
        memory = 4096
        keep_alive = "forever"
        drafts = false
        preload = ["a", "b:1"]
        prefix_cache = 0
    """
    config = read(file, text).config
    assert (config.grace, config.memory, config.keep_alive) == (2.5, 4096, math.inf)
    assert (config.drafts, config.preload, config.prefix_cache) == (False, ("a", "b:1"), 0)


def test_the_home_s_file_is_read_where_none_is_named(tmp_path: Path) -> None:
    assert Sources([], {"HEADRACE_HOME": str(tmp_path)}).read().file is None
    (tmp_path / "config.toml").write_text("threads = 3\n")
    assert Sources([], {"HEADRACE_HOME": str(tmp_path)}).read().config.threads == 3
    assert Sources(["--home", str(tmp_path)], {}).read().config.threads == 3
    other = tmp_path / "other.toml"
    other.write_text("threads = 4\n")
    env = {"HEADRACE_HOME": str(tmp_path), "HEADRACE_CONFIG": str(other)}
    assert Sources([], env).read().config.threads == 4
    assert Sources(["--config", str(tmp_path / "config.toml")], env).read().config.threads == 3


def test_a_named_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        Sources(["--config", str(tmp_path / "none.toml")], {}).read()


def test_the_controller_s_own_variable_comes_before_the_clients(file: Path) -> None:
    env = {"HEADRACE_HOST": "unix:/tmp/a.sock", "HEADRACE_LISTEN": "localhost:0"}
    assert read(file, 'listen = "localhost:9"', **env).config.listen == "localhost:0"
    del env["HEADRACE_LISTEN"]
    assert read(file, 'listen = "localhost:9"', **env).config.listen == "unix:/tmp/a.sock"
    env["HEADRACE_HOST"] = ""
    assert read(file, 'listen = "localhost:9"', **env).config.listen == "localhost:9"


def test_every_mistake_is_told_with_its_place_what_was_found_and_what_is_right(file: Path) -> None:
    text = """\
memroy = "12GiB"
keep_alive = "soon"

queue_total = 2.5
drafts = 1
preload = [
    "a", 3,
]
[models."smollm2:135m"]
contxt = 10
listen = "localhost:1"
adapter = "No Name"
dtype = "int3"
[models."No Name"]
"""
    assert mistakes(file, text, HEADRACE_GRACE="never") == [
        "1: memroy: there is no such setting; did you mean memory?",
        '2: keep_alive: "soon" is no time such as 90, 5m or 1h, nor forever',
        "4: queue_total: 2.5 is a number, not a whole number",
        "5: drafts: 1 is a whole number, not true or false",
        '6: preload: ["a", 3] is not a list of strings',
        '10: [models."smollm2:135m"] contxt: there is no such setting; did you mean context?',
        '11: [models."smollm2:135m"] listen: is a setting of the controller, not of one model; '
        "move it to the top",
        *[line for line in mistakes(file, text) if line.startswith("12:")],
        '13: [models."smollm2:135m"] dtype: "int3" is none of auto, float32, int8, stored',
        *[line for line in mistakes(file, text) if line.startswith("14:")],
        'HEADRACE_GRACE: "never" is no time such as 90, 5m or 1h',
    ]
    for mistake in (mistakes(file, text)[7], mistakes(file, text)[-1]):
        assert "is no model name; write name or name:tag" in mistake


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a b", "is not TOML"),
        (
            'adapter = "mine"',
            'is a setting of one model; move it to its table, [models."name:tag"]',
        ),
        ("models = 3", 'is no table; write [models."name:tag"]'),
        ("models.a = 3", "3 is no table of settings"),
        ("x = 1979-05-27", "there is no such setting"),
        ("grace = 1979-05-27", '"1979-05-27" is a date or time, not a string'),
        ('[models.smollm2]\n[models."smollm2:135m"]', '2: [models."smollm2:135m"] the same model'),
        ("[models.a]\n[models.'a:latest']", '2: [models."a:latest"] the same model as'),
        ('listen = "0.0.0.0:1"', "reaches beyond this machine"),
    ],
)
def test_what_is_wrong_is_told(file: Path, text: str, told: str) -> None:
    (mistake,) = mistakes(file, text)
    assert told in mistake


def test_a_home_directory_that_is_not_known_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('home = "~nosuchuser/x"')
    for source in (
        Sources(["--config", str(file)], {}),
        Sources([], {"HEADRACE_HOME": "~nosuchuser/x"}),
        Sources([], {"HEADRACE_CONFIG": "~nosuchuser/x"}),
    ):
        with pytest.raises(ConfigError, match="home directory"):
            source.read()


def test_a_file_that_is_no_text_is_told(file: Path) -> None:
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not TOML"):
        Sources(["--config", str(file)], {}).read()
    file.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="larger than"):
        Sources(["--config", str(file)], {}).read()


def test_a_slip_in_a_variable_is_told(file: Path) -> None:
    env = {"HEADRACE_MEMROY": "1GiB", "HEADRACE_TEST_HOME": "x", "HEADRACE_HOST": "localhost"}
    env |= {"HEADRACE_TOKEN": "hr_x", "HEADRACE_TLS_CA": "ca.crt", "HEADRACE_CLIENT_CERT": "c.crt"}
    told = read(file, "", **env).warnings
    assert told == ("HEADRACE_MEMROY is not read; did you mean HEADRACE_MEMORY?",)


def test_models_have_options_of_their_own(file: Path) -> None:
    text = """
        keep_alive = "1m"
        max_concurrency = 4
        [models."team/llama"]
        max_concurrency = 8
        pinned = true
        [models.smollm2]
        context = 512
    """
    config = read(file, text).config
    llama, other = config.options("team/llama:latest"), config.options("other:latest")
    assert (llama.max_concurrency, llama.pinned, llama.keep_alive) == (8, True, 60.0)
    assert (other.max_concurrency, other.pinned, other.keep_alive) == (4, False, 60.0)
    assert config.options("smollm2:135m").context == 512  # By the catalogue's alias.


def test_only_what_a_runner_cannot_change_asks_for_another(file: Path) -> None:
    def key(text: str) -> str:
        return read(file, f"[models.a]\n{text}").config.options("a:latest").of_the_runner

    for same in ('keep_alive = "1s"', "pinned = true", "replicas = 2", "max_concurrency = 32"):
        assert key(same) == key("")
    others = ["context = 9", "drafts = false", "prefix_cache = 0", "max_concurrency = 1"]
    keys = {key(other) for other in [*others, 'dtype = "stored"', ""]}
    assert len(keys) == 6


def test_what_is_shown_can_be_read_and_says_the_same(file: Path, tmp_path: Path) -> None:
    text = 'keep_alive = "forever"\nmemory = "3GiB"\n[models."a:1"]\npinned = true\ncontext = 7\n'
    effective = read(file, text, "--preload", "b", HEADRACE_GRACE="0.5s")
    shown = as_toml(effective)
    assert 'memory = "3GiB"' in shown
    assert f"# {file}:5" in shown
    assert "# --preload" in shown
    assert "# HEADRACE_GRACE" in shown
    assert "# threads: all usable cores" in shown
    again = read(tmp_path / "again.toml", shown)
    assert again.config == effective.config


def test_what_changes_is_told_and_what_cannot_change_stays(file: Path) -> None:
    before = read(file, 'memory = "1GiB"\n[models.a]\ncontext = 9').config
    text = 'listen = "localhost:1"\nthreads = 2\nkeep_alive = "1m"\n[models.b]\npinned = true'
    after = read(file, text).config
    told = {str(change): change.live for change in changes(before, after)}
    assert told == {
        'memory: "1GiB" -> not set': True,
        'keep_alive: "5m" -> "1m"': True,
        'models."a:latest".context: 9 -> not set': True,
        'models."b:latest".pinned: not set -> true': True,
        'listen: "127.0.0.1:50151" -> "localhost:1"': False,
        "threads: not set -> 2": False,
    }
    taken = taken_over(before, after)
    assert (taken.listen, taken.threads) == (before.listen, None)
    assert (taken.memory, taken.keep_alive, taken.models) == (None, 60.0, after.models)
    assert not changes(before, before)


def test_every_setting_has_one_name_everywhere(file: Path) -> None:
    for setting in SETTINGS:
        if setting.default is None or setting.key in ("home", "listen"):
            continue
        shown = setting.kind.show(setting.default)
        config = read(file, f"{setting.key} = {shown}").config
        assert getattr(config, setting.key) == setting.default
        text = shown.strip('"[]')
        if text:
            assert Sources([], {setting.variable: text}).read().config == ServerConfig(
                home=Path.home() / ".headrace"
            )


@settings(deadline=None)
@given(st.integers(1, 30), st.data())
def test_the_line_of_a_key_is_where_it_stands(count: int, data: st.DataObject) -> None:
    """Among comments, strings over several lines that look like keys, and lists."""
    filler = st.sampled_from(
        [
            "# k = 1\n",
            "\n",
            'a{} = """\nwanted = 1\n[x]\n"""\n',
            "b{} = [\n1,\n# ]\n2,\n]\n",
            "c{} = 3\n",
        ]
    )
    parts = [data.draw(filler).replace("{}", str(i)) for i in range(count)]
    place = data.draw(st.integers(0, count))
    before = "".join(parts[:place])
    text = before + "wanted = [\n 1,\n]\n" + "".join(parts[place:])
    assert line_of(text, ("wanted",)) == before.count("\n") + 1
