"""Kinds of hostile input, each with good examples, mutations and a check.

An input is one `bytes` object. A check raises whatever is a fault: any exception beside `DpoError`,
"bug in dpo", unsafe characters in the output, an unknown exit code.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from dpo_cli import app
from dpo_cli.data import rendering
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.data.sources import Source
from dpo_cli.data.token_cache import encode_source
from dpo_cli.distributed.process_group import SINGLE_PROCESS
from dpo_cli.errors import DpoError
from dpo_cli.models.loading import load_model_weights
from dpo_cli.models.minimind import MiniMind
from dpo_cli.profile.inputs import find_problems
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import KEYS
from dpo_cli.run.events import to_json
from tests.fuzz.mutations import STRANGE, mutate_bytes, mutate_json
from tests.support import story
from tests.support.families import build
from tests.support.unsafe import EVIL, unsafe_characters

REPOSITORY = Path(__file__).resolve().parents[2]
_TURNS = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
_ROWS = [
    {"chosen": _TURNS, "rejected": [_TURNS[0], {"role": "assistant", "content": "b"}]},
    {"prompt": "Say a.", "chosen": "a", "rejected": "b"},
    {"conversations": [{"from": "human", "value": "Say a."}],
     "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    {"instruction": "Say", "input": "a", "output": ["a", "b"]},
]  # fmt: skip
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SCRAPS = (
    *(
        "{{ 'a' * 10**9 }}",
        "{% for i in range(9999999) %}{% endfor %}",
        "{{ raise_exception('x') }}",
    ),
    *("{{ messages }}", "{{ x.y.z }}", "{{ ''.__class__.__mro__ }}", "{% if", "{{ '\\ud800' }}"),
    *("{{ 9**9**9 }}", "{{ messages[9] }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"),
    *(
        "{{ '%s' % cycler }}",
        "{{ strftime_now('%Y') }}",
        "{% set messages = 1 %}",
        "\x1b[31m",
        "\0",
    ),
    *("{{ messages|tojson }}", "{{ ['a']|join(1) }}", "{{ lipsum(n=99999) }}", "{{ 1/0 }}"),
)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: name on the command line, and of the folder in the corpus.
        examples: returns good inputs.
        mutate: changes one.
        check: raises if an input is not handled; gets an empty working directory.
    """

    name: str
    examples: Callable[[], Sequence[bytes]]
    mutate: Callable[[random.Random, bytes], bytes]
    check: Callable[[bytes, Path], None]


# --- the command line in this process -------------------------------------------------------------


def run_dpo(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run `dpo` in a folder; return the exit code and everything it printed."""
    before, output = Path.cwd(), io.BytesIO()
    streams = sys.stdin, sys.stdout, sys.stderr
    os.chdir(folder)
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        sys.stdout = io.TextIOWrapper(output, "utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(output, "utf-8", write_through=True)
        code = app.main(list(words))
        sys.stdout.flush()
        sys.stderr.flush()
        return code, output.getvalue().decode()
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        os.chdir(before)


def assert_handled(words: Sequence[str], folder: Path, codes: Sequence[int] = (0, 1, 2)) -> None:
    code, text = run_dpo(words, folder)
    assert code in codes, f"exit code {code}: {text[:2000]}"
    assert "bug in dpo" not in text, text[:2000]
    assert "Traceback" not in text, text[:2000]
    assert not unsafe_characters(text), repr(text[:2000])


# --- profiles -------------------------------------------------------------------------------------


def _profiles() -> list[bytes]:
    own = [path.read_bytes() for path in sorted((REPOSITORY / "profiles").glob("*.toml"))]
    inputs = '\n[model]\nweights = "w.pth"\ntokenizer = "t"\n[data]\ndata_path = "rows.jsonl"\n'
    return [*own, b'extends = "dense"' + inputs.encode()]


_TOML = (
    *(
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "9" * 5000,
        "0x" + "f" * 5000,
        '""',
        '"\\u0000"',
        '"x"',
        "''",
    ),
    *(
        "[]",
        "[" * 3000 + "]" * 3000,
        "{a={" * 900 + "}" * 900,
        "{}",
        "true",
        "1979-05-27",
        '["a", 1]',
    ),
    *(
        '"' + "a/" * 3000 + '"',
        '"' + "𝄞" * 64 + '"',
        '"\\u202e\\u001b[2J"',
        '"~nobody/x"',
        '"$NONE"',
    ),
    *(
        '"/dev/zero"',
        '"/dev/stdin"',
        '"run:../x"',
        '"run:\\u0000"',
        '"hf:a/b"',
        '"..."',
        "[[1], {}]",
    ),
)


def _mutate_profile(rng: random.Random, content: bytes) -> bytes:
    """Set a key, real or strange, to a value of any type; or change bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    key = rng.choice((*KEYS, *KEYS, "extends", "train", "x.y", '"\\u001b"', ".".join("a" * 900)))
    return f"{key} = {rng.choice(_TOML)}\n".encode() + content


def _check_profile(content: bytes, folder: Path) -> None:
    (folder / "p.toml").write_bytes(content)
    (folder / "rows.jsonl").write_text(json.dumps(_ROWS[0]) + "\n")
    assert_handled(["config", "show", "p.toml", "--origins"], folder)
    with contextlib.suppress(DpoError):
        find_problems(load_profile(folder / "p.toml"))


# --- rows and tables ------------------------------------------------------------------------------


def _row_files() -> list[bytes]:
    """Return name suffix, newline and content."""
    files = []
    for row in _ROWS:
        lines = "".join(json.dumps(row) + "\n" for _ in range(3)).encode()
        files += [b".jsonl\n" + lines, b".json\n" + json.dumps([row] * 3).encode()]
        files.append(b".jsonl.gz\n" + gzip.compress(lines))
    return files


def _tables() -> list[bytes]:
    files = [b'.csv\nprompt,chosen,rejected\na,"b ""x""\n",c\nd,e,f\n']
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        for row in _ROWS[:3]:
            file = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist([row] * 5), file)
            files.append(b".parquet\n" + file.getvalue())
    return files


def _mutate_file(rng: random.Random, content: bytes) -> bytes:
    suffix, _, rest = content.partition(b"\n")
    if suffix == b".jsonl" and rng.random() < 0.6:
        lines = rest.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = mutate_json(rng, lines[at])
        return suffix + b"\n" + b"\n".join(lines)
    if suffix == b".json" and rng.random() < 0.6:
        return suffix + b"\n" + mutate_json(rng, rest)
    if suffix.endswith(b".gz") and rng.random() < 0.5:
        with contextlib.suppress(Exception):
            return suffix + b"\n" + gzip.compress(mutate_bytes(rng, gzip.decompress(rest)))
    return suffix + b"\n" + mutate_bytes(rng, rest)


def _check_rows(content: bytes, folder: Path) -> None:
    suffix, _, rest = content.partition(b"\n")
    path = folder / f"rows{suffix.decode()}"
    path.write_bytes(rest)
    with contextlib.suppress(DpoError):
        rows = list(read_pairs(path))
        encode_pairs(rows, tokenizer(), max_seq_len=64, empty_think_ratio=0.5, seed=1)
        Source((path,)).look()
        for row in rows:
            assert row.line > 0


# --- models ---------------------------------------------------------------------------------------


def _state() -> dict[str, torch.Tensor]:
    small = MiniMind(3, 16, 2, 32, 24, 0, 2, 1, 8, 1, True, 1e6, 1e-6)
    shapes = small.expected_shapes().items()
    return {name: torch.zeros(shape) for name, shape in shapes if name != "lm_head.weight"}


@cache
def _checkpoints() -> list[bytes]:
    files = []
    for suffix, options in (
        (".pth", {}),
        (".pth", {"_use_new_zipfile_serialization": False}),
        (".safetensors", {}),
    ):
        path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"fuzz-{os.getpid()}"
        if suffix == ".pth":
            torch.save(_state(), path, **options)
        else:
            save_file(_state(), path)
        files.append(suffix.encode() + b"\n" + path.read_bytes())
        path.unlink()
    return files


def _check_checkpoint(content: bytes, folder: Path) -> None:
    suffix, _, rest = content.partition(b"\n")
    path = folder / f"w{suffix.decode()}"
    path.write_bytes(rest)
    with contextlib.suppress(DpoError):
        load_model_weights(path, {})


@cache
def _configs() -> list[bytes]:
    """Return model family, newline and config.json."""
    minimind = {"model_type": "minimind", "num_attention_heads": 2, "num_key_value_heads": 1,
                "rope_theta": 1e6, "rms_norm_eps": 1e-6, "norm_topk_prob": True}  # fmt: skip
    examples = [b"minimind\n" + json.dumps(minimind).encode()]
    for family in ("llama", "qwen3", "gpt2", "qwen3-moe"):
        settings = build(family).config.to_json_string()
        examples.append(f"{family}\n{settings}".encode())
    return examples


@cache
def _weights_of(family: str) -> dict[str, torch.Tensor]:
    if family == "minimind":
        return _state()
    return {name: tensor.clone() for name, tensor in build(family).state_dict().items()}


def _mutate_config(rng: random.Random, content: bytes) -> bytes:
    family, _, rest = content.partition(b"\n")
    return family + b"\n" + mutate_json(rng, rest)


def _check_config(content: bytes, folder: Path) -> None:
    family, _, rest = content.partition(b"\n")
    (folder / "config.json").write_bytes(rest)
    save_file(_weights_of(family.decode()), folder / "model.safetensors", {"format": "pt"})
    with contextlib.suppress(DpoError):
        load_model_weights(folder, {})


# --- tokenizers and templates ---------------------------------------------------------------------


@cache
def _tokenizer_json() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [
            AddedToken(name, normalized=False, special=True)
            for name in ("<|im_start|>", "<|im_end|>")
        ]
    )
    return str(made.to_str())


def _write_tokenizer(folder: Path, text: str, template: str) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template, "utf-8", errors="surrogatepass")


@cache
def tokenizer() -> ChatTokenizer:
    """A byte-level tokenizer with MiniMind's template."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(Path(folder), _tokenizer_json(), _TEMPLATE)
        return ChatTokenizer(Path(folder))


def _mutate_template(rng: random.Random, content: bytes) -> bytes:
    text = content.decode(errors="replace")
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    at = rng.randrange(len(text) + 1)
    return (text[:at] + rng.choice(_SCRAPS) + text[at:]).encode(errors="replace")


def _check_template(content: bytes, folder: Path) -> None:
    rendering._TRIAL_SECONDS = 1  # of CPU time; this target does not search for hangs
    _write_tokenizer(folder, _tokenizer_json(), content.decode(errors="replace"))
    _encode_one(folder)


def _check_tokenizer(content: bytes, folder: Path) -> None:
    _write_tokenizer(folder, content.decode(errors="replace"), _TEMPLATE)
    _encode_one(folder)


def _encode_one(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS[:1]))
    with contextlib.suppress(DpoError):
        loaded = ChatTokenizer(folder)
        rows = read_pairs(folder / "rows.jsonl")
        encode_pairs(rows, loaded, max_seq_len=64, empty_think_ratio=0.5, seed=1)
        with contextlib.suppress(ValueError):
            loaded.prompt([{"role": "user", "content": "a"}])


# --- run directories ------------------------------------------------------------------------------


@cache
def _runs() -> list[bytes]:
    """Return name of a file, newline and content."""
    events = [*story.preparation(), *story.training(0, 60), story.at(99, story.SLOW)]
    events += [story.at(100, story.FAILED)]
    stream = "".join(to_json(event) + "\n" for event in events)
    plan = json.dumps(story.PLAN.to_dict())
    return [
        *(f"events.jsonl\n{stream}".encode() for _ in range(4)),
        f"plan.json\n{plan}".encode(),
        b"lock\n123 host\n",
        b'profile.toml\n[model]\nweights = "/w.pth"\n[data]\ndata_path = "/p.jsonl"\n',
        b'skipped_rows.jsonl\n{"line": 1, "problem": "malformed", "reason": "x"}\n',
        b"COMPLETED\n{}",
    ]


def _mutate_run(rng: random.Random, content: bytes) -> bytes:
    name, _, rest = content.partition(b"\n")
    if name == b"events.jsonl":
        lines = rest.split(b"\n")
        for _ in range(rng.choice((1, 2, 10))):
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(rng, lines[at])
        rest = b"\n".join(lines)
    elif name == b"plan.json":
        rest = mutate_json(rng, rest)
    return name + b"\n" + (mutate_bytes(rng, rest) if rng.random() < 0.3 else rest)


def _check_run(content: bytes, folder: Path) -> None:
    name, _, rest = content.partition(b"\n")
    run = story.write(folder / "runs", "odd", *story.whole())
    story.write(folder / "runs", "good", *story.whole())
    (run.path / name.decode()).write_bytes(rest)
    commands = ("runs", "runs --json", f"show {run.name}", f"show {run.name} --samples",
                f"show {run.name} --at 20", f"watch {run.name}", "clean --dry-run",
                f"compare {run.name} good", f"report {run.name} --out r.html",
                f"plot {run.name} --out p.svg", f"stop {run.name}")  # fmt: skip
    for words in random.Random(content).sample(commands, 3):
        assert_handled(words.split(), folder)


# --- caches ---------------------------------------------------------------------------------------


def _caches() -> list[bytes]:
    """Return number of a file in the entry; the mutation is in the bytes after it."""
    return [bytes([number]) + b"0" * 8 for number in range(3)]


def _check_cache(content: bytes, folder: Path) -> None:
    """Damage one file of an entry; the rows must be the same."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _ROWS[:1] * 20))
    os.environ["DPO_CACHE_DIR"] = str(folder / "cache")

    def encode() -> list[int]:
        rows = encode_source(
            Source((path,)), tokenizer(), empty_think_ratio=0.5, seed=1,
            on_progress=lambda done, total: None, ranks=SINGLE_PROCESS,
        )  # fmt: skip
        return [int(id) for id in rows.ids.to(torch.int32)]

    try:
        first = encode()
        files = sorted(file for file in (folder / "cache").rglob("*") if file.is_file())
        file = files[content[0] % len(files)] if content else files[0]
        good = file.read_bytes()
        rng = random.Random(content)
        damaged = mutate_json(rng, good) if file.suffix == ".json" else mutate_bytes(rng, good)
        file.write_bytes(damaged)
        assert encode() == first
        assert encode() == first
    finally:
        del os.environ["DPO_CACHE_DIR"]


# --- command lines --------------------------------------------------------------------------------

_COMMANDS = (
    "init x", "init x --recipe gentle", "data rows.jsonl", "data p.toml --line 1", "runs",
    "train p.toml", "train missing.toml", "resume a", "resume runs/a --background", "stop a",
    "watch a", "show a --at 3 --width 80", "compare a b", "plot a --out x.svg", "report a --out x",
    "eval a", "merge a b --out c", "clean a --dry-run", "export a --out c", "schema --out x.json",
    "import w.pth --out c", "cache size", "cache dir --json", "config show p.toml --set a.b=1",
    "sweep p.toml --set train.epochs=1,2", "chat a --prompt x", "check missing.toml", "--version",
)  # fmt: skip
_WORDS = (
    *("", "-", "--", "--help", "--json", "--set", "--runs-dir", "--out", "a" * 300, "a/" * 3000),
    *("\0", "\udcff", "runs/\udcff", EVIL, "9" * 5000, "-1", "1e999", "nan", "[" * 3000, "a=[" * 9),
    *(
        "train.epochs=" + "[" * 2000,
        "x=1",
        "=",
        "/dev/null",
        "/proc/self/mem",
        ".",
        "..",
        "/",
        "~x",
        "~x/y",
    ),
    *(
        "很" * 100,
        "𝄞" * 64,
        "data.data_path=\0",
        "~zz/a",
        "run:a",
        "run:\0",
        "hf:x/y",
        "--line",
        "--at",
    ),
    *("model.weights=" + "a" * 300, "data.data_path=['a', 1]", "train.seed=" + "9" * 5000),
)


def _command_lines() -> list[bytes]:
    return [json.dumps(shlex.split(line)).encode() for line in _COMMANDS]


def _mutate_command_line(rng: random.Random, content: bytes) -> bytes:
    words = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(1, len(words) + 1)
        match rng.randrange(4):
            case 0:
                words[at:at] = [rng.choice(_WORDS)]
            case 1:
                words[at : at + 1] = [rng.choice(_WORDS)]
            case 2 if at < len(words):
                words[at] += rng.choice(_WORDS)
            case _:
                words[at : at + 1] = [str(rng.choice(STRANGE))]
    return json.dumps(words).encode()


def _check_command_line(content: bytes, folder: Path) -> None:
    words = [str(word).replace("\0", "") for word in json.loads(content)]  # as for any process
    (folder / "p.toml").write_text('extends = "dense"\n[model]\nweights = "missing.pth"\n')
    (folder / "rows.jsonl").write_text(json.dumps(_ROWS[0]) + "\n")
    story.write(folder / "runs", "a", *story.whole())
    with _no_processes():
        assert_handled(words, folder, (0, 1, 2, 4))


@contextlib.contextmanager
def _no_processes() -> Iterator[None]:
    """Refuse to start a worker or a download, because the tests concern the command line."""
    import dpo_cli.run.processes as processes

    before = processes.start_child, os.environ.get("HF_HUB_OFFLINE")

    def refuse(*arguments: object, **options: object) -> None:
        raise DpoError("no processes here", "none")

    processes.start_child = refuse  # type: ignore[assignment]
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        processes.start_child = before[0]
        if before[1] is None:
            del os.environ["HF_HUB_OFFLINE"]


TARGETS = {
    target.name: target
    for target in (
        Target("profiles", _profiles, _mutate_profile, _check_profile),
        Target("rows", _row_files, _mutate_file, _check_rows),
        Target("tables", _tables, _mutate_file, _check_rows),
        Target("checkpoints", _checkpoints, _mutate_file, _check_checkpoint),
        Target("configs", _configs, _mutate_config, _check_config),
        Target("templates", lambda: [_TEMPLATE.encode()], _mutate_template, _check_template),
        Target("tokenizers", lambda: [_tokenizer_json().encode()], mutate_json, _check_tokenizer),
        Target("runs", _runs, _mutate_run, _check_run),
        Target(
            "caches", _caches, lambda rng, content: content[:1] + rng.randbytes(8), _check_cache
        ),
        Target("commands", _command_lines, _mutate_command_line, _check_command_line),
    )
}
