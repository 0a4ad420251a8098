"""Strings that tend to break tokenizers, streaming and chat templates."""

from __future__ import annotations

TOKENIZER_EDGE_CASES: tuple[str, ...] = (
    "",
    " ",
    "   leading and trailing   ",
    "Hello, world! It's what they'd've said; I'LL see.",
    "1234567 and 3.14159, 0x1F, 2024-12-31, ١٢٣ ½ Ⅷ ²",
    "🙂🙃 👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇫🇷",
    "生活就像一盒巧克力，你永远不知道下一块是什么味道。繁體字也在這裡",
    "日本語のテキスト、カタカナとひらがな。한국어 문장도 있습니다.",
    "اللغة العربية تُكتب من اليمين إلى اليسار، שלום עולם",
    "नमस्ते दुनिया ไทยไม่มีช่องว่าง Ελληνικά Русский",
    "def f(x):\n\tif x > 0:\n\t\treturn x ** 2  # square\n\n\n    else:\n        return {'a': [1, 2, 3]}\n",
    "for (int i=0;i<10;++i){a[i]=b[i]&0xff;}\t\t\t// tabs\n",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f",
    "line one\r\nline two\r\n\r\nline three\rline four",
    "e\u0301 vs \u00e9, n\u0303 vs \u00f1, Z\u0351\u036b\u0343a\u0333l\u0322g\u035eo",
    "zero\u200bwidth\u200djoin\ufeffbom\u00a0nbsp\u2028line\u2029para\u3000wide",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><s></s><unk><pad>",
    "<|im_start|> <|im_end|><|im_start|>x <0x0A> [INST] <|eot_id|>",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "ALLCAPS camelCase snake_case kebab-case ThisIsATest iPhone15ProMax",
    "a" * 10_000,
    "".join(chr(0x4E00 + i * 7 % 20_000) for i in range(500)),
    "\ud7ff\ue000\uffff\U00010000\U0010ffff",
    "▁ already ▁▁ there ▁",
    "\n\n\n \n\t\n  \n",
    "“quotes” ‘single’ — dash … ellipsis ™ © ® € £ ¥ ≠ ≤ ∑ √ ∞",
)
"""Strings that a tokenizer must encode exactly as the source's does."""
