"""Literal ids for every pre-tokenizer of GGUF: a wrong expression is wrong in the tokenizer and in its oracle alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ggufs import write_gguf
from splitting import FIRST, TEXTS, learn
from tokenizers import Tokenizer

from edgekit.source import open_model, source_tokenizer
from edgekit.source.gguf_oracle import _byte_letters
from edgekit.source.gguf_tokenizer import SPLITS

GOLDEN: dict[str, tuple[str, ...]] = {
    "gpt-2": (
        "260 262 115 48 266 268 270 37 273 120 276 266 279 120 282 284 125 287 289 105 292 294 104 63 273 43 300 "
        "292 303 50",
        "124 306 308 310 312 314 50 317 319 321 182",
        "101 36 325 324 327 329 330 331 333",
        "260 262 334 336 338 119 340 120 276 342 344 43 88 348 350",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 44 124 379 381 13 13 385 387 389 391 393 101 51 102 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 36 14 51 117",
        "412 413 266 105 43 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 63 14 51 117",
    ),
    "smollm": (
        "260 262 115 48 266 268 270 37 273 120 276 266 279 120 282 284 125 287 289 105 292 294 104 63 273 43 300 "
        "292 303 50",
        "124 36 53 54 55 56 57 58 59 36 55 50 53 56 36 320 322",
        "101 36 325 324 327 329 330 331 333",
        "260 262 334 336 338 119 340 120 276 342 344 43 88 348 350",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 44 124 379 381 13 13 385 387 389 391 393 101 51 102 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 36 14 51 117",
        "412 413 266 105 43 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 63 14 51 117",
    ),
    "llama-bpe": (
        "260 262 115 48 266 268 270 37 273 120 276 266 279 120 282 284 125 287 289 105 292 294 104 63 273 299 80 "
        "292 303 50",
        "124 36 307 55 310 58 59 36 55 50 317 36 320 322",
        "101 36 325 324 327 329 14 36 331 333",
        "260 262 334 336 338 119 340 120 276 342 344 346 348 350",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 377 379 381 13 384 386 388 114 391 393 101 396 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 333 411",
        "412 413 266 105 43 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 428 411",
    ),
    "qwen2": (
        "260 262 115 48 266 268 270 37 273 120 276 266 279 120 282 284 125 287 289 105 292 294 104 63 273 299 80 "
        "292 303 50",
        "124 36 53 54 55 56 57 58 59 36 55 50 53 56 36 320 322",
        "101 36 325 324 327 329 14 36 331 333",
        "260 262 334 336 338 119 340 120 276 342 344 346 36 360",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 377 379 381 13 384 386 388 114 391 393 101 396 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 333 411",
        "412 413 266 105 43 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 428 411",
    ),
    "tekken": (
        "260 262 115 48 266 268 270 37 273 120 276 266 279 120 282 284 125 287 289 105 292 294 104 63 273 299 80 "
        "292 303 50",
        "124 36 53 54 55 56 57 58 59 36 55 50 53 56 36 320 322",
        "101 36 325 324 327 329 14 36 331 333",
        "260 262 115 335 337 339 340 120 276 342 344 346 348 350",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 377 379 381 13 384 386 388 114 391 393 101 396 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 333 411",
        "43 398 119 266 105 43 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 63 410 117",
    ),
    "gpt-4o": (
        "260 262 115 48 266 268 270 37 273 275 119 266 279 120 282 284 286 104 289 105 292 294 104 63 273 299 80 "
        "292 303 50",
        "124 36 307 55 310 58 59 36 55 50 317 36 320 322",
        "101 36 325 324 327 329 14 36 331 333",
        "260 262 115 335 337 339 340 275 119 342 344 346 348 350",
        "351 353 355 327 358 360 362 364 366 191 369 371 373 134",
        "375 377 379 381 13 384 386 388 114 391 393 101 396 14",
        "398 348 101 292 114 403 124 348 124 406 101 342 115 333 411",
        "43 398 119 266 415 385 101 262 419 401 115 419 404 419 290 124 419 262 423 101 419 408 426 63 410 117",
    ),
}
"""Ids of TEXTS by tiktoken 0.14.0 with the vocabulary of ``splitting`` and the expressions their authors published:

gpt-2: openai/gpt-2's encoder.py; smollm: the same behind a cut around each \\p{N}, as llama.cpp has it;
llama-bpe: meta-llama/llama3's tokenizer.py; qwen2: QwenLM/Qwen's tokenization_qwen.py, on text in NFC; tekken: the
config of Mistral's tekken.json; gpt-4o: o200k_base in tiktoken_ext/openai_public.py.
"""

SAME = {
    "starcoder": "smollm",
    "refact": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "dbrx": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
"""Rows that llama.cpp gives the expressions of another row (llm_tokenizer_bpe in src/llama-vocab.cpp)."""

BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Rows for which llama.cpp puts a beginning of text in front unless the file says otherwise."""


def entries(pre: str, **changes: Any) -> dict[str, Any]:
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = learn()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokens = [*special, *letters, *(spelled(left + right) for left, right in merges)]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] * FIRST + [1] * (len(tokens) - FIRST),
        "merges": [f"{spelled(left)} {spelled(right)}" for left, right in merges],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes


def test_every_row_has_its_ids() -> None:
    assert set(GOLDEN) | set(SAME) == set(SPLITS)
    assert len({str(ids) for ids in GOLDEN.values()}) == len(GOLDEN), "each cuts some text otherwise"


@pytest.mark.parametrize("pre", SPLITS)
def test_literal_ids(tmp_path: Path, pre: str) -> None:
    vocabulary = entries(pre)
    write_gguf(tmp_path / "m.gguf", tokenizer=vocabulary, vocab_size=len(vocabulary["tokens"]))
    checkpoint = open_model(str(tmp_path / "m.gguf"))
    ours = Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())
    oracle = source_tokenizer(checkpoint)
    for text, ids in zip(TEXTS, GOLDEN[SAME.get(pre, pre)], strict=True):
        assert " ".join(map(str, ours.encode(text, add_special_tokens=False).ids)) == ids, text
        assert " ".join(map(str, oracle(text))) == ids, text
    assert ours.encode("x").ids[:1] == ([1] if pre in BEGINS else ours.encode("x", add_special_tokens=False).ids)


@pytest.mark.parametrize("pre", SPLITS)
def test_whole_pieces_stay_whole_where_llama_cpp_keeps_them(tmp_path: Path, pre: str) -> None:
    """``ignore_merges``: a piece that is a token is that token, whatever the merges say."""
    vocabulary = entries(pre)
    vocabulary["tokens"].append("xyzzy")
    vocabulary["token_type"].append(1)
    write_gguf(tmp_path / "m.gguf", tokenizer=vocabulary, vocab_size=len(vocabulary["tokens"]))
    checkpoint = open_model(str(tmp_path / "m.gguf"))
    ours = Tokenizer.from_str((checkpoint.file("tokenizer.json") or b"").decode())
    whole = ours.encode("xyzzy", add_special_tokens=False).ids == [len(vocabulary["tokens"]) - 1]
    assert whole == (pre in (*BEGINS, "smaug-bpe"))
