"""Several hundred texts that tokenizers get wrong: scripts, emoji, code, control characters."""

import random

_SENTENCES = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\t\r\n",
    "Hello, world!",
    "don't can't I'm we'll they've",
    "The year 2024 had 366 days; pi is 3.14159265358979.",
    "0123456789 00 1e-9 0xDEADBEEF",
    "こんにちは、世界。今日はいい天気ですね。",
    "你好，世界！今天天气怎么样？",
    "안녕하세요 세계",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "Żółć gęślą jaźń, Füße über Straßen, naïve café",
    "e\u0301 is not é, and a\u0308 is not ä",
    "👋🌍 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎",
    "\ufeffBOM, zero\u200bwidth, nb\u00a0space, \u2028line",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufffd \uffff \U0010ffff \ue000",
    "def f(x):\n    return {k: v for k, v in x.items() if k != 'a'}\n",
    "int main(void) { return 0; } /* \\n \\t */",
    '<html><body class="x">&amp; &lt;</body></html>',
    "SELECT * FROM t WHERE a >= 1 AND b <> 'x''y';",
    '{"a": [1, 2.5, null, true], "b": "\\u00e9"}',
    "https://example.com/a/b?c=d&e=%20#f  me@example.com",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "$\\sum_{i=0}^{n} x_i^2 = \\frac{1}{2}$",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>text<|im_end|><|im_end|> tail",
    "<|im_start <im_start|> |im_end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "MiXeD CaSe ALLCAPS snake_case camelCase kebab-case",
    "...!!!???;;;:::---___***+++===",
    "▁lower one eighth block ▁▁ and <0x0A>",
]


def texts() -> list[str]:
    """The sentences, joins of them, and seeded random strings over all of Unicode's planes."""
    draw = random.Random(20)
    blocks = [(0x00, 0x7F), (0x80, 0x24F), (0x400, 0x4FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF)]
    blocks += [(0x1F300, 0x1F6FF), (0x2000, 0x206F), (0x0, 0xD7FF), (0x10000, 0x10FFFF)]
    joined = ["".join(draw.sample(_SENTENCES, 3)) for _ in range(120)]
    scattered = [
        "".join(chr(draw.randint(*draw.choice(blocks))) for _ in range(draw.randint(1, 60)))
        for _ in range(240)
    ]
    return _SENTENCES + joined + scattered
