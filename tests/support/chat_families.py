"""Chat templates and tokenizers that behave like those of known families, and rows to encode.

The tokenizers are built here, by counting, so that every machine builds the same ones.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]

_ALTERNATE = (
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate') }}{%- endif %}"
)
_QWEN_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
    "{{- messages[0].content + '\\n\\n' }}{%- endif %}{{- '# Tools\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}"
    "{{- '\\n</tools><|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
)
_QWEN_CALLS = (
    "{%- for c in m.tool_calls %}{%- if c.function %}{%- set c = c.function %}{%- endif %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}'
    "{{- c.arguments | tojson }}"
    "{{- '}\\n</tool_call>' }}{%- endfor %}"
)
_QWEN_RESULT = (
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content"
    " + '\\n</tool_response><|im_end|>\\n' }}"
)

TEMPLATES: Mapping[str, str] = {
    "llama2": "{%- if messages[0].role == 'system' %}{%- set turns = messages[1:] %}"
    "{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{%- else %}"
    "{%- set turns = messages %}{%- set system = '' %}{%- endif %}{%- for m in turns %}"
    + _ALTERNATE
    + "{%- set content = (system if loop.first else '') + m.content %}{%- if m.role == 'user' %}"
    "{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{%- else %}"
    "{{- ' ' + content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}",
    "llama3": "{%- for m in messages %}{%- set text = '<|start_header_id|>' + m.role"
    " + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' %}{%- if loop.first %}"
    "{%- set text = bos_token + text %}{%- endif %}{{- text }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}",
    "mistral": "{{- bos_token }}{%- for m in messages %}"
    + _ALTERNATE
    + "{%- if m.role == 'user' %}"
    "{{- '[INST] ' + m.content + ' [/INST]' }}{%- else %}{{- m.content + eos_token }}{%- endif %}"
    "{%- endfor %}",
    "mistral_v3": "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- if tools and loop.index0 == 0 %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson"
    " + '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}"
    "{{- c.function | tojson }}{%- endfor %}{{- ']' + eos_token }}{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{%- elif m.role == 'assistant' %}"
    "{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}",
    "vicuna": "{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content + ' ' }}"
    "{%- elif m.role == 'user' %}{{- 'USER: ' + m.content.strip() + ' ' }}"
    "{%- elif m.role == 'assistant' %}{{- 'ASSISTANT: ' + m.content.strip() + eos_token }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}",
    "gemma": "{{- bos_token }}{%- if messages[0].role == 'system' %}"
    "{{- raise_exception('System role not supported') }}{%- endif %}{%- for m in messages %}"
    + _ALTERNATE
    + "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'"
    " + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<start_of_turn>model\\n' }}{%- endif %}",
    "phi3": "{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}"
    "{{- eos_token }}{%- endif %}",
    "chatml": "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content"
    " + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "zephyr": "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}",
    "qwen25": _QWEN_TOOLS + "{%- else %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}"
    "{%- endif %}{%- for m in messages %}{%- if m.role == 'assistant' and m.tool_calls %}"
    "{{- '<|im_start|>assistant' }}{%- if m.content %}{{- '\\n' + m.content }}{%- endif %}"
    + _QWEN_CALLS + "{{- '<|im_end|>\\n' }}" + _QWEN_RESULT
    + "{%- elif m.role != 'system' or not loop.first %}{{- '<|im_start|>' + m.role + '\\n'"
    " + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "qwen3": _QWEN_TOOLS + "{%- endif %}{%- set ns = namespace(last=-1) %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set content = m.content %}"
    "{%- set thought = '' %}{%- if m.reasoning_content is string %}"
    "{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n') %}"
    "{%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\\n' +"
    " thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}"
    "{{- content }}{%- endif %}" + _QWEN_CALLS + "{{- '<|im_end|>\\n' }}" + _QWEN_RESULT
    + "{%- elif m.role != 'system' or not loop.first %}{{- '<|im_start|>' + m.role + '\\n'"
    " + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}NO_THINKING{%- endif %}",
    "deepseek": "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}"
    "{{- m.content }}{%- elif m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<｜Assistant｜>' + m.content.split('</think>')[-1]"
    " + eos_token }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<｜Assistant｜><think>\\n' }}{%- endif %}",
    "glm": "{{- '[gMASK]<sop>' }}{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|assistant|>' }}{%- set content = m.content %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set content = content.split('</think>')[-1].strip() %}{%- else %}"
    "{%- set thought = '' %}{%- endif %}{{- '\\n<think>' + thought + '</think>' }}"
    "{%- if content.strip() %}{{- '\\n' + content.strip() }}{%- endif %}"
    "{%- for c in m.tool_calls or [] %}{%- set c = c.function or c %}"
    "{{- '\\n<tool_call>' + c.name }}{%- for k, v in c.arguments.items() %}"
    "{{- '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' + v + '</arg_value>' }}{%- endfor %}"
    "{{- '\\n</tool_call>' }}{%- endfor %}{%- elif m.role == 'tool' %}"
    "{{- '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
    "nemotron": "{{- '<extra_id_0>System\\n' }}{%- if messages[0].role == 'system' %}"
    "{{- messages[0].content | trim }}{%- endif %}{{- '\\n' }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<extra_id_1>User\\n' + m.content | trim + '\\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<extra_id_1>Assistant\\n' + m.content | trim"
    " + '\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<extra_id_1>Assistant\\n' }}{%- endif %}",
}  # fmt: skip
TEMPLATES = {
    **{name: text.replace("NO_THINKING", "") for name, text in TEMPLATES.items()},
    "qwen3_not_thinking": TEMPLATES["qwen3"].replace(
        "NO_THINKING", "{{- '<think>\\n\\n</think>\\n\\n' }}"
    ),
}
_MARKS = [
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "[gMASK]",
    "<sop>",
    "<|observation|>",
    "<extra_id_0>",
    "<extra_id_1>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
]
_WITHOUT_MARKS = {"llama2": ("[INST]", "[/INST]"), "mistral": ("[INST]", "[/INST]")}
"""Strings that are no special tokens in a family."""
TOKENIZERS = ("byte_bpe", "gpt2_bpe", "sentencepiece", "mistral_bpe", "unigram", "wordpiece")

_CORPUS = (
    "Is the sea salt? Yes. No. The sky is blue because air scatters short waves of light more than"
    " long ones. How do I boil an egg? Put it into boiling water for eight minutes, then cool it."
    " You are a helpful assistant. I go through it step by step. system user assistant model tool"
    " USER: ASSISTANT: User Assistant System [INST] [/INST] Tools name arguments function city"
    " weather sunny\n\nfor i in range(10):\n    print(i)\n    return [i]\n\n\n  - one\n  - two\n"
    "天空为什么是蓝色的？因为空气散射短波光。早上好\n\n"
)


def _merges(words: Mapping[tuple[str, ...], int], count: int) -> list[tuple[str, str]]:
    """Compute byte pair merges: the most frequent pair first, ties in the order of the pairs."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merged(word, best): times for word, times in words.items()}
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts, index = [], 0
    while index < len(word):
        both = word[index : index + 2] == pair
        parts.append("".join(pair) if both else word[index])
        index += 2 if both else 1
    return tuple(parts)


def _bpe(pieces: Sequence[str], alphabet: Sequence[str], **options: Any) -> models.BPE:
    merges = _merges(Counter(tuple(piece) for piece in pieces), 260)
    tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges)])
    return models.BPE({token: id for id, token in enumerate(tokens)}, merges, **options)


@cache
def _specification(kind: str) -> str:
    return str(_tokenizer(kind).to_str())


def _tokenizer(kind: str) -> Tokenizer:
    bytes_of = pre_tokenizers.ByteLevel.alphabet()
    if kind in ("byte_bpe", "gpt2_bpe"):
        pattern = (
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        )
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2_bpe")
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        splitter = level if kind == "gpt2_bpe" else pre_tokenizers.Sequence([split, level])
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(_CORPUS)]
        tokenizer = Tokenizer(_bpe(pieces, sorted(bytes_of)))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    words = ["▁" + word for word in _CORPUS.split()] + ["\n\n", "\n\n", "▁▁▁▁", "▁▁", "\n▁▁"]
    letters = sorted({letter for word in words for letter in word})
    if kind in ("sentencepiece", "mistral_bpe"):
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        model = _bpe(words, ["<unk>", *fallback, *letters], unk_token="<unk>",
                     byte_fallback=True, fuse_unk=True)  # fmt: skip
        tokenizer = Tokenizer(model)
        steps = [normalizers.Prepend("▁")] if kind == "sentencepiece" else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        return tokenizer
    if kind == "unigram":
        counts: Counter[str] = Counter()
        for word in words:
            for start in range(len(word)):
                counts.update(word[start:end] for end in range(start + 1, len(word) + 1))
        kept = sorted(counts, key=lambda piece: (-counts[piece] * len(piece), piece))[:500]
        pieces = dict.fromkeys([*letters, *kept])
        total = sum(counts[piece] for piece in pieces)
        scores = [(piece, math.log(counts[piece] / total)) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram([("<unk>", -20.0), *scores], unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer
    texts = _CORPUS.split()
    characters = sorted({letter for text in texts for letter in text})
    vocabulary = dict.fromkeys(
        ["[UNK]", *characters, *("##" + letter for letter in characters), *texts]
    )
    tokenizer = Tokenizer(
        models.WordPiece({token: id for id, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def write_tokenizer(folder: Path, template: str, kind: str) -> Path:
    """Write a tokenizer of a kind, with the template of a family, to its own folder."""
    path = folder / f"{template}-{kind}"
    tokenizer = Tokenizer.from_str(_specification(kind))
    marks = [mark for mark in _MARKS if mark not in _WITHOUT_MARKS.get(template, ())]
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = TEMPLATES[template]
    wrapped.save_pretrained(path)
    return path


def _turn(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def _row(prompt: Sequence[Row] | str, chosen: str | Row, rejected: str | Row, **more: Any) -> Row:
    def answer(said: str | Row) -> list[Row]:
        return [_turn("assistant", said) if isinstance(said, str) else said]

    turns = [_turn("user", prompt)] if isinstance(prompt, str) else list(prompt)
    return {"prompt": turns, "chosen": answer(chosen), "rejected": answer(rejected), **more}


def _calling(arguments: Any) -> Row:
    call = {"name": "weather", "arguments": arguments}
    return _turn("assistant", "", tool_calls=[{"type": "function", "function": call}])


_EARLIER = [_turn("user", "Hello"), _turn("assistant", "Yes, ask me."), _turn("user", "Why?")]
_THOUGHT = "<think>\nI go through it.\n</think>\n\n"
_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
}

ROWS: Mapping[str, Row] = {
    "first word": _row("Is the sea salt?", "Yes", "No"),
    "sentences": _row("Why is the sky blue?", "Because air scatters light.", "It is."),
    "one begins the other": _row("Is it?", "Yes", "Yes, it is."),
    "Chinese": _row("天空为什么是蓝色的？", "因为空气散射短波光。", "早上好"),
    "several turns": _row(_EARLIER, "Because of the light.", "No idea."),
    "thoughts in an earlier turn": _row(
        [_EARLIER[0], _turn("assistant", _THOUGHT + "Yes."), _EARLIER[2]], "So.", "No."
    ),
    "system": _row([_turn("system", "You are helpful."), _turn("user", "Hi")], "Yes.", "No."),
    "system with blanks": _row(
        [_turn("system", "\n You are helpful. \n\n"), _turn("user", " Hi\n")], "Yes.", "No."
    ),
    "thoughts": _row("Why?", _THOUGHT + "The sky is blue.", "<think>\nNo.\n</think>\n\nIt is."),
    "thoughts on one side": _row("Why?", _THOUGHT + "Because.", "No."),
    "thoughts without blanks": _row("Why?", "<think>so</think>Yes", "<think>\n</think>\n\nNo"),
    "reasoning_content": _row(
        "Why?", _turn("assistant", "Yes", reasoning_content="I go through it."), "No"
    ),
    "space first": _row("Why?", " Yes", " No"),
    "spaces first": _row("Why?", "    Yes", "  No"),
    "newlines first": _row("Why?", "\n\nYes", "\nNo"),
    "newline first on one side": _row("Why?", "\nYes", "No"),
    "blanks last": _row("Why?", "Yes \n", "No\n\n"),
    "blanks all around": _row(" Why? \n", "\n Yes. \n", " \n\nNo.  "),
    "code": _row("How?", "for i in range(10):\n    print(i)\n\n", "```\n  - one\n```"),
    "list": _row("How?", "- one\n- two", "1. one\n2. two"),
    "tab first": _row("How?", "\tYes", "\t\tNo"),
    "no blank before": _row("How?\n", ".", "?"),
    "tool call": _row("Weather?", _calling({"city": "Paris"}), "I do not know."),
    "two tool calls": _row("Weather?", _calling({"city": "Rome"}), _calling({"city": "Oslo"})),
    "tool turns": _row(
        [_turn("user", "Weather?"), _calling({"city": "Rome"}), _turn("tool", "sunny")],
        "It is sunny.", "No idea.",
    ),
    "tool definitions": _row("Weather?", _calling({"city": "Paris"}), "No.", tools=[_TOOL]),
    "tool definitions and system": _row(
        [_turn("system", "You help."), _turn("user", "Weather?")], "Yes.", "No.",
        tools=json.dumps([_TOOL]),
    ),
}  # fmt: skip
