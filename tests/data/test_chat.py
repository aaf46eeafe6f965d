"""Tests of token ids and masks against golden/tok, and of errors in the golden masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.data.chat import ChatTokenizer, Encoded, Tokenized
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.rendered import Answer, Rendered
from dpo_cli.errors import DpoError

TOKENIZERS = {"seed": "minimind2", "head": "minimind3"}
SIDES = ("chosen", "rejected")

# golden/tok/<version>.edge, by the names of golden/data/edge.names.json: response tokens that a
# scan of the ids finds, and those there are.
SCAN_MISTAKES = {
    # A user quotes the header, and the scan takes the next text for an answer.
    ("seed", "", "header_text_inside_user", "chosen"): (11, 6),
    ("seed", "", "header_text_inside_user", "rejected"): (11, 6),
    ("head", "keep", "header_text_inside_user", "chosen"): (17, 12),
    ("head", "keep", "header_text_inside_user", "rejected"): (16, 11),
    ("head", "strip", "header_text_inside_user", "chosen"): (11, 6),
    ("head", "strip", "header_text_inside_user", "rejected"): (10, 5),
    # MiniMind version 2's template writes an answer's header after the user's turn; an answer that
    # follows another answer, or comes first, has none, and the scan misses it.
    ("seed", "", "two_answers_in_a_row", "chosen"): (3, 8),
    ("seed", "", "two_answers_in_a_row", "rejected"): (3, 7),
    ("seed", "", "answer_without_user", "chosen"): (0, 4),
    ("seed", "", "answer_without_user", "rejected"): (0, 4),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(shared: Path, version: str) -> ChatTokenizer:
    return ChatTokenizer(shared / "tokenizer" / TOKENIZERS[version])


def encode_side(tokenizer: ChatTokenizer, pair: PreferencePair, side: str, mode: str) -> Tokenized:
    (rendered,) = tokenizer.render(getattr(pair, side))
    rendered = rendered.with_think_in_answers()
    rendered = rendered.without_empty_think() if mode == "strip" else rendered
    return tokenizer.encode([rendered])[0].tokenized()


def padded(tokenized: Tokenized, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(length, dtype=torch.int64)
    mask = torch.zeros(length, dtype=torch.int64)
    kept = min(length, len(tokenized.ids))
    ids[:kept], mask[:kept] = tokenized.ids[:kept], tokenized.response[:kept].long()
    return ids, mask


@pytest.mark.parametrize("name", ["train27", "tok24", "edge"])
def test_ids_and_masks_are_the_golden_ones(
    golden: Path, tokenizer: ChatTokenizer, version: str, name: str
) -> None:
    expected = load_file(golden / f"tok/{version}.{name}.safetensors")
    pairs = [p for p in read_pairs(golden / f"data/{name}.jsonl") if isinstance(p, PreferencePair)]
    names = json.loads((golden / "data/edge.names.json").read_text()) if name == "edge" else []
    groups = {key.rsplit(".", 1)[0] for key in expected}
    modes_and_lengths = [(group, *group.rpartition("L")[::2]) for group in sorted(groups)]
    seen_mistakes = set()
    compared = 0
    for group, mode, length in modes_and_lengths:
        mode = mode.rstrip(".")
        if mode.startswith("seeded"):  # a random number for each side: see test_golden_mistakes.py
            continue
        for index, pair in enumerate(pairs):
            for side in SIDES:
                ids, mask = padded(encode_side(tokenizer, pair, side, mode), int(length))
                assert torch.equal(ids[:-1], expected[f"{group}.x_{side}"][index].long())
                assert torch.equal(ids[1:], expected[f"{group}.y_{side}"][index].long())
                golden_mask = expected[f"{group}.mask_{side}"][index].long()
                compared += 1
                if torch.equal(mask[1:], golden_mask):
                    continue
                mistake = (version, mode, names[index], side)
                assert SCAN_MISTAKES[mistake] == (int(golden_mask.sum()), int(mask[1:].sum()))
                seen_mistakes.add(mistake)
    assert compared >= 2 * len(pairs)
    if name == "edge":
        assert seen_mistakes == {mistake for mistake in SCAN_MISTAKES if mistake[0] == version}


def test_every_length_around_the_end_of_an_answer(
    golden: Path, tokenizer: ChatTokenizer, version: str
) -> None:
    """golden/tok/<version>.boundary.json has the truncation at each place."""
    recorded = json.loads((golden / f"tok/{version}.boundary.json").read_text())
    (pair,) = read_pairs(golden / "data/boundary.jsonl")
    assert isinstance(pair, PreferencePair)
    compared = 0
    for row in recorded["rows"]:
        for side in SIDES:
            ids, mask = padded(encode_side(tokenizer, pair, side, "strip"), row["max_length"])
            assert ids[1:].tolist() == row[f"y_{side}"]
            assert mask[1:].tolist() == row[f"mask_{side}"], (row["max_length"], side)
            compared += 1
    assert compared > 10


def test_the_rendered_text_is_the_golden_one(
    golden: Path, tokenizer: ChatTokenizer, version: str
) -> None:
    for name in ("tok24", "edge"):
        recorded = json.loads((golden / f"tok/{version}.{name}.rendered.json").read_text())
        pairs = list(read_pairs(golden / f"data/{name}.jsonl"))
        for pair, texts in zip(pairs, recorded, strict=True):
            for side in SIDES:
                (rendered,) = tokenizer.render(getattr(pair, side))
                assert rendered.text == texts[side]
                assert len(tokenizer.encode([rendered])[0].ids) == texts[f"{side}_n_tokens"]


def test_an_answer_that_begins_with_spaces_keeps_its_mask(shared: Path) -> None:
    """The newline of the header and the spaces merge into one token, with which no prompt ends.

    The token belongs to the answer. MiniMind version 3's scan finds no marker then and trains on
    nothing.
    """
    for name in TOKENIZERS.values():
        tokenizer = ChatTokenizer(shared / "tokenizer" / name)
        turns = [
            {"role": "user", "content": "Say hi"},
            {"role": "assistant", "content": "    Hi there"},
        ]
        (rendered,) = tokenizer.render(turns)
        rendered = rendered.with_think_in_answers().without_empty_think()
        (encoded,) = tokenizer.encode([rendered])
        tokens = encoded.tokenized()
        ((prompt, end),) = rendered.answers
        assert rendered.text[len(prompt) : end] == "    Hi there<|im_end|>\n"
        assert tokenizer.decode(tokens.ids[tokens.response]) == "\n    Hi there<|im_end|>\n"
        assert 3 <= tokens.response_tokens <= 6
        assert not tokens.response[: -tokens.response_tokens].any()
        assert tokens.response[-tokens.response_tokens :].all()


def test_removing_empty_think_blocks_moves_the_answers() -> None:
    text = "user: <think>\n\n</think>\n\nhi\nbot: <think>\n\n</think>\n\nyes."
    start = text.index("bot: ") + 5
    rendered = Rendered(text, (Answer(text[:start], len(text)),)).without_empty_think()
    assert rendered.text == "user: hi\nbot: yes."
    ((prompt, end),) = rendered.answers
    assert (prompt, rendered.text[len(prompt) : end]) == ("user: hi\nbot: ", "yes.")


def test_answers_that_touch_are_one(shared: Path) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    text = "one two three four"
    spans = (3, 7), (7, 7), (7, 13), (18, 18)
    answers = tuple(Answer(text[:start], end) for start, end in spans)
    (encoded,) = tokenizer.encode([Rendered(text, answers)])
    assert encoded == Encoded(encoded.ids, ((1, 3),))


def test_turns_that_conversations_share_are_rendered_once(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind3")
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]
    sides = [[*prompt, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    alone = [tokenizer.render(side)[0] for side in sides]
    rendered: list[object] = []
    apply = tokenizer._apply

    def hooks(conversations: list[list[dict[str, str]]], **options: object) -> list[str]:
        rendered.extend(conversations)
        return apply(conversations, **options)

    monkeypatch.setattr(tokenizer, "_apply", hooks)
    assert tokenizer.render(*sides) == alone
    # Both whole texts, the prompt of each answer, and the shared end of the first answer.
    assert len(rendered) == 2 + 2 + 1


class TestEncodePairs:
    def encode(
        self, shared: Path, *lines: str, max_seq_len: int = 64
    ) -> tuple[list[int], list[tuple[int, str, str]]]:
        from tests.support.written import parse_row

        kept, skipped_rows = encode_pairs(
            [parse_row(number, line.encode()) for number, line in enumerate(lines, start=1)],
            ChatTokenizer(shared / "tokenizer/minimind2"),
            max_seq_len=max_seq_len,
            empty_think_ratio=0.0,
            seed=1,
        )
        return [pair.line for pair in kept], [(s.line, s.problem, s.reason) for s in skipped_rows]

    @staticmethod
    def row(chosen: str, rejected: str, prompt: str = "Why?") -> str:
        def side(text: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]

        return json.dumps({"chosen": side(chosen), "rejected": side(rejected)})

    def test_good_rows_are_kept_in_order(self, shared: Path) -> None:
        assert self.encode(shared, self.row("a", "b"), self.row("c", "d")) == ([1, 2], [])

    def test_identical_sides_are_skipped(self, shared: Path) -> None:
        kept, aside = self.encode(shared, self.row("a", "a"), self.row("a", "b"))
        assert kept == [2]
        assert aside == [(1, "identical", "both sides are the same")]

    def test_a_row_without_a_response_after_the_cut_is_skipped_with_its_length(
        self, shared: Path
    ) -> None:
        kept, aside = self.encode(
            shared, self.row("yes", "no", prompt="word " * 99), max_seq_len=40
        )
        assert not kept
        ((line, problem, reason),) = aside
        assert (line, problem) == (1, "truncated")
        assert "no response token of 'chosen' left at max_seq_len 40 (" in reason

    def test_sides_that_differ_only_beyond_the_cut_are_skipped(self, shared: Path) -> None:
        same = "the same words again and again " * 9
        kept, aside = self.encode(shared, self.row(same + "yes", same + "no"), max_seq_len=48)
        assert not kept
        assert aside == [(1, "identical", "both sides are the same up to max_seq_len 48")]

    def test_malformed_rows_pass_through_in_the_order_of_the_file(self, shared: Path) -> None:
        kept, aside = self.encode(shared, "{", self.row("a", "b"), self.row("a", "a"), "[]")
        assert kept == [2]
        assert [(line, problem) for line, problem, _ in aside] == [
            (1, "malformed"),
            (3, "identical"),
            (4, "malformed"),
        ]

    def test_the_real_rows(self, shared: Path) -> None:
        """51 of the 400 real rows have no response tokens left at 1,024."""
        kept, skipped_rows = encode_pairs(
            read_pairs(shared / "data/dpo_en_zh_400.jsonl"),
            ChatTokenizer(shared / "tokenizer/minimind2"),
            max_seq_len=1024,
            empty_think_ratio=0.0,
            seed=1,
        )
        assert (len(kept), len(skipped_rows)) == (349, 51)
        assert {row.problem for row in skipped_rows} == {"truncated", "identical"}


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpoError, match="the tokenizer cannot be read"):
        ChatTokenizer(tmp_path)


def test_a_tokenizer_without_a_template_is_an_error(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizer/minimind2"
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DpoError, match="has no chat template"):
        ChatTokenizer(tmp_path)


def test_a_row_whose_template_rewrites_earlier_turns_is_skipped(
    shared: Path, tmp_path: Path
) -> None:
    source = shared / "tokenizer/minimind2"
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{{ messages | length }} turns:{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ChatTokenizer(tmp_path)
    turns = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        tokenizer.render(turns)


def test_the_fingerprint_covers_both_tokenizers_and_the_template(
    shared: Path, tmp_path: Path
) -> None:
    folders = [shared / "tokenizer" / name for name in TOKENIZERS.values()]
    config = json.loads((folders[0] / "tokenizer_config.json").read_text())
    config["chat_template"] += " "
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((folders[0] / "tokenizer.json").read_bytes())
    fingerprints = {ChatTokenizer(folder).fingerprint() for folder in (*folders, tmp_path)}
    assert len(fingerprints) == 3
    assert ChatTokenizer(folders[0]).fingerprint() in fingerprints
