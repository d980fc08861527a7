"""Devices: names, and what upstream's predicates say of each."""

from __future__ import annotations

import re

import pytest

from pyllm.errors import ConfigError
from pyllm.routes.devices import ALIASES, AMD_OFFSET, DEVICES, FAMILIES, as_compiled, resolve


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sm_86", "sm_86"),
        ("SM86", "sm_86"),
        ("8.6", "sm_86"),
        ("sm_8.6", "sm_86"),
        ("860", "sm_86"),
        ("compute_90a", "sm_90"),
        ("10.0", "sm_100"),
        ("1200", "sm_120"),
        ("12.1", "sm_121"),
        ("H200", "sm_90"),
        ("rtx3090", "sm_86"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "sm_89"),
        ("GeForce GTX 1080 Ti", "sm_61"),
        ("RTX 6000 Ada", "sm_89"),
        ("Tesla V100", "sm_70"),
        ("Jetson AGX Orin", "sm_87"),
        ("DGX Spark", "sm_121"),
        ("gfx11", "gfx1100"),
        ("gfx1031", "gfx1030"),
        ("GFX90A", "gfx90a"),
        ("gfx1151", "gfx1150"),
        ("AMD Instinct MI300X", "gfx942"),
        ("RX 7900 XTX", "gfx1100"),
        ("RX 6600", "gfx1030"),
        ("rdna3.5", "gfx1150"),
    ],
)
def test_names(name, found):
    assert resolve(name) is DEVICES[found]


def test_every_name_is_its_own():
    for name in (*DEVICES, *ALIASES):
        assert resolve(name).name == ALIASES.get(name, name)
    assert not set(ALIASES) & set(DEVICES)


@pytest.mark.parametrize(("name", "near"), [("sm_68", "sm_8"), ("gfx1101x", "gfx1101"), ("gfx91", "gfx1"), ("turin", "turing")])
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"device `{name}` is not known") as caught:
        resolve(name)
    assert f"did you mean `{near}" in caught.value.hint
    assert "sm_120" in caught.value.hint


def test_nothing_like_it():
    with pytest.raises(ConfigError) as caught:
        resolve("???")
    assert caught.value.hint.startswith("known devices: sm_50")


def test_what_other_builds_see():
    assert as_compiled(DEVICES["sm_72"], (500, 610, 700)).matrix == "volta"
    assert as_compiled(DEVICES["sm_72"], (500, 720)).matrix == "none"
    assert as_compiled(DEVICES["sm_90"], (750,)).matrix == "turing"
    assert not as_compiled(DEVICES["sm_60"], (500, 610)).fast_fp16
    assert not as_compiled(DEVICES["sm_62"], (610,)).fast_fp16
    assert as_compiled(DEVICES["gfx942"], ()) is DEVICES["gfx942"]
    for device in DEVICES.values():
        assert as_compiled(device, (device.arch,)) == device
    with pytest.raises(ConfigError, match="a build for 800, 860 has no code for sm_75"):
        as_compiled(DEVICES["sm_75"], (860, 800))


def test_shared_memory():
    assert {name: DEVICES[name].smem for name in ("sm_61", "sm_75", "sm_86", "sm_90", "gfx942")} == {
        "sm_61": 49152,
        "sm_75": 65536,
        "sm_86": 101376,
        "sm_90": 232448,
        "gfx942": 65536,
    }


def test_upstreams_predicates(cuda):
    """Evaluate common.cuh's constants and the conditions that the data states."""
    text = (cuda / "common.cuh").read_text()
    constants = {name: int(value, 0) for name, value in re.findall(r"#define GGML_CUDA_CC_(\w+) +(0x[0-9a-fA-F]+|\d+)\b", text)}
    assert constants["OFFSET_AMD"] == AMD_OFFSET
    for name, offset, value in re.findall(r"CC_(\w+) +\(GGML_CUDA_CC_(OFFSET_\w+) \+ (0x[0-9a-f]+)\)", text):
        constants[name] = constants[offset] + int(value, 16)
    macros = dict(re.findall(r"#define GGML_CUDA_CC_(IS_\w+)\(cc\) +(\(.+\))", text))
    functions = dict(
        re.findall(r"static bool (\w+_mma_available|amd_\w+_available|fast_fp16_available|fp16_available)\(const int cc\) \{(.*?)\n\}", text, re.DOTALL)
    )

    def holds(expression, cc):
        """A C condition as Python: macros and predicates by name, ggml's numbers by value."""
        expression = re.sub(r"#if.*|#else(.|\n)*?#endif.*|#endif.*", "", expression)
        expression = re.search(r"return (.*?);", expression, re.DOTALL)[1] if "return" in expression else expression
        expression = re.sub(r"ggml_cuda_highest_compiled_arch\(cc\)|\(cc\) (?===)", "cc ", expression)
        expression = re.sub(r"GGML_CUDA_CC_(IS_\w+)\(cc\)", lambda m: f"macro('{m[1]}')", expression)
        expression = re.sub(r"\b(\w+_available)\(cc\)", lambda m: f"function('{m[1]}')", expression)
        expression = re.sub(r"GGML_CUDA_CC_(\w+)", lambda m: str(constants[m[1]]), expression)
        expression = expression.replace("&&", " and ").replace("||", " or ").replace("!=", "≠").replace("!", " not ").replace("≠", "!=")
        expression = re.sub(r"\s+", " ", expression).strip()
        names = {"cc": cc, "macro": lambda name: holds(macros[name], cc), "function": lambda name: holds(functions[name], cc)}
        return eval(expression, {}, names)  # noqa: S307 - the hash-pinned source, reduced to numbers and comparisons

    for device in DEVICES.values():
        kinds = {
            "ampere": "ampere_mma_available",
            "turing": "turing_mma_available",
            "volta": "volta_mma_available",
            "mfma": "amd_mfma_available",
            "wmma": "amd_wmma_available",
        }
        found = next((kind for kind, predicate in kinds.items() if holds(functions[predicate], device.arch)), "none")
        assert (device.name, found) == (device.name, device.matrix)
        assert holds(functions["fast_fp16_available"], device.arch) == device.fast_fp16
        assert holds(macros["IS_AMD"], device.arch) == (device.vendor == "amd")


def test_families_are_what_the_compiler_is_told(cuda):
    """Members of a family define the same macros of hip.h as its first; AMD devices get those that their matrix units need."""
    text = (cuda / "vendors" / "hip.h").read_text().replace("\\\n", " ")
    blocks = re.findall(r"#if (defined.*)\n#define (\w+)", text)

    def macros(name):
        known = {f"__{name}__", f"__GFX{name[3:-2]}__"}
        for _ in range(2):
            for condition, macro in blocks:
                parts = [part.strip() for part in condition.split("&&")]
                tokens = [(part.startswith("!"), set(re.findall(r"defined\((\w+)\)", part))) for part in parts]
                if all(bool(names & known) != negated for negated, names in tokens):
                    known.add(macro)
        return {macro for macro in known if not macro.startswith("__") and not macro.startswith("V_")}

    for first, members in FAMILIES.items():
        assert macros(first)
        for member in members:
            assert macros(member) == macros(first)
    for device in DEVICES.values():
        if device.vendor == "amd":
            defined = macros(device.name)
            assert ("CDNA" in defined) == (device.matrix == "mfma")
            assert bool({"RDNA3", "RDNA4"} & defined) == (device.matrix == "wmma")
            assert ("RDNA" in defined) == (device.arch >= AMD_OFFSET + 0x1010)
    assert not macros("gfx1013"), "gfx1011 and gfx1013 could join the family of gfx1010"
