"""The format: what is read, and what is refused with line and column."""

from __future__ import annotations

import pytest

from pyllm.errors import NotFoundError, ScenarioError
from pyllm.repro import load
from pyllm.repro.scenario import path_name

PROMPT = "  - prompt: {tokens: [1, 2], n: 4}\n"


def test_a_file_is_read(write):
    several = "  - prompt:\n      - {text: a, n: 1}\n      - {random: 3, n: 1, count: 2}\n"
    scenario = load(write(PROMPT + "  - restart\n  - wait: {seconds: 0.1}\n" + several))
    assert scenario.name == "case/one"
    assert [step.verb for step in scenario.steps] == ["prompt", "restart", "wait", "prompt"]
    assert len(scenario.steps[3].prompt) == 2
    assert scenario.server_flags("m", None) == ["-m", "m", "--spec-type", "draft-mtp"]


def test_on_and_off_stay_text(write):
    scenario = load(write(change=lambda text: text.replace("skip: {engine: a fake has no engine}", "engine: {flash_attn: on, unified: true}")))
    assert scenario.engine == {"flash_attn": "on", "unified": True}


@pytest.mark.parametrize(
    ("change", "place", "says", "hint"),
    [
        (("limit: 2", "limt: 2"), (17, 1), "key `limt` is not known", "did you mean `limit`?"),
        (("n: 4}", "n: 4, temprature: 0}"), (19, 36), "key `temprature` is not known", "did you mean `temperature`?"),
        (("- prompt:", "- promt:"), (19, 5), "key `promt` is not known", "did you mean `prompt`?"),
        (
            ("- prompt: {tokens: [1, 2], n: 4}", "- restrat"),
            (19, 5),
            "key `restrat` is not known",
            "did you mean `restart`?",
        ),
        (("name: case/one", "name: case/two"), (1, 1), "name `case/two` is not the file's path", "name: case/one"),
        (("n: 4}", "n: many}"), (19, 30), "`n` is 'many': input should be a valid integer", ""),
        (("n: 4}", "n: 0}"), (19, 30), "`n` is 0", ""),
        ((", n: 4}", "}"), (19, 5), "key `n` is missing", ""),
        (("description: What it proves.\n", ""), (1, 1), "key `description` is missing", ""),
        (("tokens: [1, 2],", "tokens: [1, 2], text: a,"), (19, 5), "a prompt has text and tokens", "one of"),
        (("tokens: [1, 2],", ""), (19, 5), "a prompt has no content", "one of"),
        (("n: 4}", "n: 4, count: 3}"), (19, 5), "would send the same prompt 3 times", "random"),
        (("n: 4}", "n: 4, cut: 3}"), (19, 5), "cuts nothing", "continues"),
        (("tokens: [1, 2],", "content: [{text: a}], continues: true,"), (19, 5), "content continues nothing", "as content"),
        (("tokens: [1, 2],", "content: [{}],"), (19, 24), "a piece of content needs a text or an image", "one piece for each"),
        (("tokens: [1, 2],", "content: [{image: {width: 8, height: 8}}],"), (19, 25), "an image needs a colour or a seed", "colour: red"),
        (("tokens: [1, 2],", "content: [{image: {width: 8, height: 8, colour: rde}}],"), (19, 54), "colour `rde` is not known", "did you mean `red`?"),
        (("tokens: [1, 2],", "content: [{image: {width: 0, height: 8, seed: 1}}],"), (19, 33), "`width` is 0", ""),
        (("tokens: [1, 2],", "content: [{image: {width: 8, height: 8, seed: 1}}],"), (19, 5), "something that makes rows of it", "add `projector: {}`"),
        (("n: 4}", "n: 4}\n    save: {slot: 0, to: a}"), (19, 5), "a step has `prompt` and `save`", "one of"),
        (
            ("n: 4}", "n: 4}\n    expect: {error: LimitErorr}"),
            (20, 14),
            "error `LimitErorr` is not known",
            "`LimitError`",
        ),
        (("n: 4}", "n: 4}\n    expect: {error: InternalError}"), (20, 14), "may not be expected", "defect"),
        (("model: {path: model.gguf}", "model: {recipe: gema4}"), (9, 9), "recipe `gema4` is not known", "`gemma4`"),
        (("model: {path: model.gguf}", "model: {recipe: gemma4, path: a}"), (9, 1), "only one of them", ""),
        (
            ("skip: {engine: a fake has no engine}", "engine: {slot: 1}"),
            (10, 10),
            "engine setting `slot` is not known",
            "`slots`",
        ),
        (
            ("skip: {engine: a fake has no engine}", "engine: {spec: dflash}"),
            (10, 1),
            "`draft-dflash` needs a draft model",
            "give draft",
        ),
        (("skip: {engine: a fake has no engine}", "skip: {server: x}"), (1, 1), "neither `engine` nor a reason", ""),
        (
            ("flags: -m {model} --spec-type draft-mtp", "flags: -m {model} --spec-type draft-mtp -c 5"),
            (12, 3),
            "`-c 5`",
            "substitution",
        ),
        (("reported: --port 1,", "reported: --prot 1,"), (13, 3), "`--prot 1` cannot be substituted", "copy"),
        (("limit: 2", "limit: 2\nlimit: 3"), (18, 1), "key `limit` is given twice", "line 17"),
        (("limit: 2", "limit: [2"), (18, 6), "not YAML", ""),
    ],
)
def test_mistakes_are_refused_with_line_and_column(write, change, place, says, hint):
    path = write(change=lambda text: text.replace(*change, 1))
    with pytest.raises(ScenarioError) as caught:
        load(path)
    line, column = place
    assert caught.value.message.startswith(f"{path}:{line}:{column}: ")
    assert says in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"- a\n", b"\xff\xfe", b"a: *b\n"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ScenarioError, match=r"x\.yaml:1:"):
        load(tmp_path / "x.yaml")


def test_a_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="there is no scenario file"):
        load(tmp_path / "x.yaml")


def test_the_name_of_a_path(tmp_path):
    assert path_name(tmp_path / "repro" / "a" / "b.c.yaml") == "a/b.c"
    assert path_name(tmp_path / "b.yaml") == "b"
