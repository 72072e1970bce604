"""Who may import whom; what stays out of `import codec` and of encoding and decoding; what the wheel must carry."""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import codec

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "codec"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "numpy", "soundfile", "soxr", "safetensors", "hydra", "scipy", "matplotlib")
OPTIONAL = (
    "torchaudio",
    "transformers",
    "hydra",
    "omegaconf",
    "pesq",
    "pystoi",
    "librosa",
    "scipy",
    "matplotlib",
    "tensorboard",
    "yaml",
    "huggingface_hub",
    "torchcrepe",
    "onnxruntime",
    "vector_quantize_pytorch",
    "triton",
)


def imported_by(file: Path) -> set[str]:
    """Every module that a file imports anywhere, and what it takes from it: codec.errors, codec.errors.AudioError."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_levels(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_by(file)}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- layers


def parts_of(*names: str) -> Iterator[Path]:
    for name in names:
        path = PACKAGE / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []


RULES = {
    "errors": (["errors.py"], ["codec"]),
    "output": (["output.py"], ["codec.model", "codec.bitstream", "codec.audio", "codec.files", "torch"]),
    "input": (["input.py"], ["codec", "torch"]),
    "audio": (["audio.py"], ["codec.model", "codec.bitstream", "codec.files", "codec.training", "torch"]),
    "bitstream": (["bitstream"], ["torch", "codec.model", "codec.audio", "codec.training", "codec.files"]),
    "code files": (["code_files.py", "inspection.py"], ["torch", "codec.model.codec", "codec.model.weights"]),
    "model": (["model", "streaming.py"], ["codec.audio", "codec.bitstream", "codec.files", "codec.training"]),
    "preparation": (
        ["manifest.py", "preparation"],
        ["codec.model", "codec.bitstream", "codec.files", "codec.training", "torch"],
    ),
    "files": (["files.py"], ["codec.training", "codec.evaluation", "codec.config"]),
    "evaluation": (["evaluation", "tokenization"], ["codec.training", "codec.config", "codec.preparation"]),
    "all": (["."], ["recipes", "tests"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_left_never_imports_right(rule):
    names, forbidden = RULES[rule]
    for file in parts_of(*names):
        for name in imported_by(file) - {"codec.errors"}:
            for other in forbidden:
                if other == "codec" and name.startswith("codec.errors"):
                    continue
                assert name != other, f"{file} imports {name}"
                assert not name.startswith(other + "."), f"{file} imports {name}"


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("soundfile", ["audio.py"]),
        ("soxr", ["audio.py"]),
        ("hydra", ["config.py"]),
        ("omegaconf", ["config.py"]),
        ("torchaudio", ["_torchaudio.py"]),
        ("pesq", ["evaluation"]),
        ("pystoi", ["evaluation"]),
        ("librosa", ["evaluation"]),
        ("transformers", ["evaluation", "hub.py"]),
        ("torchcrepe", ["evaluation"]),
        ("onnxruntime", ["evaluation"]),
        ("vector_quantize_pytorch", ["model/rivals.py"]),
        ("triton", ["model/beam_gpu.py"]),
        ("click", ["cli"]),
        ("pickle", ["model/importer.py"]),
    ],
)
def test_package_is_imported_in_its_home_only(package, homes):
    allowed = set(parts_of(*homes))
    assert [str(file) for file in FILES if package in top_levels(file) and file not in allowed] == []


def test_json_is_parsed_in_its_home_only():
    """Which knows what a hostile file can do; whoever writes JSON needs the package too."""
    homes = [
        str(file.relative_to(PACKAGE))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads")
    ]
    assert homes == ["input.py"]


# -- weight


@pytest.mark.parametrize(
    "code",
    [
        "import codec; codec.__version__",
        "from codec.cli import run; run(['--help'])",
        "from codec.cli import run; run(['encode', '--help'])",
        "from codec.cli import run; run(['frobnicate'])",
    ],
)
def test_light_uses_import_nothing_heavy(code):
    loaded = run_python(f"{code}\nimport sys; print('loaded', *sys.modules)").split("loaded ")[-1].split()
    assert set(loaded) & set(HEAVY) == set()


@pytest.mark.parametrize("arguments", [["info", "FILE"], ["models"]])
def test_info_and_models_do_not_import_torch(arguments, tmp_path):
    import numpy as np

    from codec.bitstream import Header, write_codes

    path = tmp_path / "a.codes"
    write_codes(path, np.arange(10), header=Header(24000, 320, 4096, "0123456789abcdef"))
    arguments = [str(path) if argument == "FILE" else argument for argument in arguments]
    loaded = run_python(f"from codec.cli import run; run({arguments!r})\nimport sys; print('loaded', *sys.modules)")
    assert set(loaded.split("loaded ")[-1].split()) & {"torch", "soundfile", "soxr"} == set()


def test_encoding_and_decoding_need_no_optional_package(tmp_path, model_directory, speech):
    """They are blocked, as if they were not installed; torchaudio would even fail beside the CPU build of torch."""
    codes, sound = str(tmp_path / "a.codes"), str(tmp_path / "a.wav")
    run_python(
        f"""
        import sys
        for name in {OPTIONAL!r}:
            sys.modules[name] = None
        from codec.cli import run
        for more in ([], ["--refine", "1", "--overwrite"]):
            assert run(["encode", {str(speech)!r}, {codes!r}, "--model", {str(model_directory)!r}, *more]) == 0
        assert run(["decode", {codes!r}, {sound!r}, "--model", {str(model_directory)!r}]) == 0
        """
    )


# -- the package


def test_every_public_name_exists_and_an_unknown_one_does_not():
    for name in codec.__all__:
        assert getattr(codec, name) is not None
        assert name in dir(codec)
    with pytest.raises(AttributeError, match="no attribute 'encoder'"):
        codec.encoder  # noqa: B018


@pytest.mark.slow
def test_a_type_checker_knows_public_names_from_others_and_what_a_call_gives(tmp_path):
    program = """
    import codec, os, torch
    def alike(path: os.PathLike[str], device: torch.device) -> None:
        codec.save(codec.load(path, device), path)
        codec.encode_file(path, path, model=path, device=device)
        codec.decode_file(path, path, model=path, device=device)
        codec.tokenize(path, path, model=path, device=device)
    reveal_type(codec.load()(torch.zeros(1, 1, 320)).codes)
    reveal_type(codec.SimVQ(4, 4)(torch.zeros(1, 4, 1)).codes)
    reveal_type(codec.CodecError())
    codec.lod()
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", tmp_path / "program.py"]
    *revealed, misspelt, _ = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    types = [re.findall(r'Revealed type is "([\w.]+)"', line) for line in revealed]
    assert types == [["torch._tensor.Tensor"], ["torch._tensor.Tensor"], ["codec.errors.CodecError"]]
    assert 'no attribute "lod"' in misspelt


def test_packages_listed_in_pyproject_are_those_of_the_tree():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(codec[.\w]*)",$', text, re.MULTILINE))
    folders = {"codec"} | {f"codec.{file.parent.relative_to(PACKAGE)}".replace("/", ".") for file in FILES} - {
        "codec.."
    }
    data = {file.parent for suffix in ("json", "md", "safetensors") for file in PACKAGE.rglob(f"*.{suffix}")}
    folders |= {f"codec.{folder.relative_to(PACKAGE)}".replace("/", ".") for folder in data}
    configs = {file.parent for file in (ROOT / "configs").rglob("*.yaml")}
    folders |= {f"codec.{folder.relative_to(ROOT)}".replace("/", ".") for folder in configs}
    assert listed == folders


def test_source_distribution_is_the_whole_tree(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    program = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-W", "ignore", "-c", program, "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    carried = set((tmp_path / "codec.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    tree = {
        str(path.relative_to(ROOT))
        for folder in ("codec", "configs", "recipes", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    assert tree | {"README.md", "LICENSE", "pyproject.toml"} <= carried


def test_configs_are_found_as_a_resource():
    from importlib import resources

    try:
        names = {entry.name for entry in resources.files("codec.configs").iterdir()}
    except ModuleNotFoundError:
        pytest.skip("the package is not installed: pip install -e .")
    assert "__init__.py" in names


def test_specification_travels_with_the_reader():
    assert (PACKAGE / "bitstream" / "FORMAT.md").is_file()
