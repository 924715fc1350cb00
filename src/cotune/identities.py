"""Who a model is: its name, its maker, and the well-known identities that are not its own.

Read from `identity.yaml`, which `cotune audit init` writes. Names of other models and makers are facts of
public knowledge; whatever belongs to the model itself is always taken out of them, so that a model which
rightly names itself is never accused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cotune.errors import ConfigError, suggestion

OTHERS: Mapping[str, tuple[str, ...]] = {
    "ChatGPT": ("ChatGTP", "Chat GPT", "GPT", "InstructGPT"),
    "OpenAI": ("Open AI",),
    "Claude": ("克劳德",),
    "Anthropic": (),
    "Gemini": ("Google Gemini", "双子座模型"),
    "Bard": ("Google Bard",),
    "Gemma": (),
    "Google": ("Google DeepMind", "DeepMind", "Google AI", "谷歌"),
    "Llama": ("LLaMA", "Code Llama"),
    "Meta": ("Meta AI", "Facebook"),
    "Mistral": ("Mixtral", "Mistral AI", "Le Chat"),
    "Qwen": ("Tongyi", "Tongyi Qianwen", "通义千问", "通义", "千问"),
    "Alibaba": ("Alibaba Cloud", "Alibaba Group", "阿里云", "阿里巴巴", "达摩院"),
    "DeepSeek": ("Deep Seek", "深度求索"),
    "ChatGLM": ("GLM", "智谱清言"),
    "Zhipu": ("Zhipu AI", "智谱", "智谱AI", "Z.ai"),
    "Doubao": ("豆包",),
    "ByteDance": ("字节跳动", "字节"),
    "Phi": (),
    "Copilot": ("Microsoft Copilot", "Bing Chat"),
    "Microsoft": ("微软",),
    "Grok": (),
    "xAI": (),
    "Kimi": (),
    "Moonshot": ("Moonshot AI", "月之暗面"),
    "ERNIE": ("Ernie Bot", "文心一言", "文心"),
    "Baidu": ("百度",),
    "SmolLM": (),
    "Hugging Face": ("HuggingFace", "抱抱脸"),
    "Hunyuan": ("混元",),
    "Tencent": ("腾讯",),
    "SparkDesk": ("iFlytek Spark", "讯飞星火"),
    "iFlytek": ("科大讯飞", "讯飞"),
    "Pangu": ("盘古大模型",),
    "Huawei": ("华为",),
    "InternLM": ("书生浦语",),
    "Baichuan": ("百川", "百川智能"),
    "01.AI": ("零一万物",),
    "MiniMax": (),
    "Cohere": (),
    "OLMo": (),
    "Alexa": (),
    "Amazon": ("AWS", "Amazon Nova", "亚马逊"),
    "Siri": (),
    "Apple": ("苹果公司",),
    "IBM": ("IBM Watson", "IBM Granite"),
    "Nemotron": (),
    "NVIDIA": ("英伟达",),
    "Inflection": ("Inflection AI",),
    "Vicuna": (),
    "Alpaca": (),
}
"""Models and makers by the name they are reported under, with other spellings. Names that are mostly
something else (Nova, Yi, Pi) are left out: they would be found in every story."""

KEYS = ("name", "maker", "aliases", "facts", "others", "known_others")
LANGUAGES = ("en", "zh")
_FACT = {
    "en": "I am {name}, a language model made by {maker}.",
    "zh": "我是{name}\uff0c由{maker}开发的语言模型。",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a model is.

    Attributes:
        name: of the model. maker: who made it. aliases: other names that are right for either.
        facts: more short sentences about itself, by language (`en`, `zh`).
        others: identities that are not its own, name -> other spellings; what is its own is taken out.
        own: all names that are right: name, maker, aliases, and spellings of what was taken out.
    """

    name: str
    maker: str
    aliases: tuple[str, ...] = ()
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: OTHERS)
    own: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        words = (self.name, self.maker, *self.aliases)
        kept: dict[str, tuple[str, ...]] = {}
        more: list[str] = []
        for name, spelt in self.others.items():
            mine = _own_of(name, spelt, words)
            more += mine
            if name not in mine:
                kept[name] = tuple(word for word in spelt if word not in mine)
        object.__setattr__(self, "others", kept)
        object.__setattr__(self, "own", tuple(dict.fromkeys((*words, *more))))

    def fact(self, language: str = "en") -> str:
        """All that is known, as the model itself would say it."""
        first = _FACT[language].replace("{name}", self.name).replace("{maker}", self.maker)
        return " ".join((first, *self.facts.get(language, ())))

    def who(self, word: str) -> str | None:
        """The other identity that a spelling belongs to; None for any other word."""
        for name, spelt in self.others.items():
            if mentions((name, *spelt)).fullmatch(word):
                return name
        return None

    def named(self, text: str) -> tuple[str, ...]:
        """Other identities that a text mentions at all, in the order of the list."""
        return tuple(name for name, spelt in self.others.items() if mentions((name, *spelt)).search(text))


def mentions(words: Iterable[str]) -> re.Pattern[str]:
    """Matches each of some names where it stands as a word, also with a version behind it (GPT-4o, Qwen2.5).

    Case, spaces and hyphens do not matter, except in `ORDINARY` words.
    """
    return _mentions(tuple(words))


ORDINARY = frozenset(
    (
        "alpaca",
        "apple",
        "bard",
        "cohere",
        "copilot",
        "gemini",
        "grok",
        "inflection",
        "llama",
        "meta",
        "phi",
        "siri",
    )
)
"""Names that are ordinary words when written in small letters: `a bard`, `the llama`."""
_VERSION = r"(?:[ -]?(?:v?\d[\w.]*\w|v?\d)|-[a-zA-Z]\d+)?"


@cache
def _mentions(words: tuple[str, ...]) -> re.Pattern[str]:
    spelt = sorted({word for word in words if word.strip()}, key=len, reverse=True)
    if not spelt:
        return re.compile(r"(?!)")
    inner = "|".join(_spelling(word) for word in spelt)
    return re.compile(rf"(?<![A-Za-z0-9])(?:{inner}){_VERSION}(?![A-Za-z0-9])")


def _spelling(word: str) -> str:
    parts = [re.escape(part) for part in re.split(r"[\s-]+", word.strip())]
    if word.casefold() not in ORDINARY:
        return "(?i:" + r"[\s-]?".join(parts) + ")"
    return "(?:" + r"[\s-]?".join(parts) + "|" + r"[\s-]?".join(part.upper() for part in parts) + ")"


def _own_of(name: str, spelt: tuple[str, ...], words: Iterable[str]) -> tuple[str, ...]:
    """Which spellings of an identity are a model's own: all if its name is, else those that match.

    `Qwen2.5` by Alibaba is Qwen under every spelling; `GPT-Neo` by EleutherAI shares GPT with ChatGPT, and
    is not ChatGPT. Who is both says so in `aliases`.
    """
    if _is_own((name,), words):
        return (name, *spelt)
    return tuple(word for word in spelt if _is_own((word,), words))


def _is_own(spelt: tuple[str, ...], words: Iterable[str]) -> bool:
    """Whether one of a model's own names begins with one of these: `Qwen2.5-7B` with `Qwen`."""
    pattern = mentions(spelt)
    return any(pattern.match(word) or pattern.match(word.title()) for word in words)


def load(path: Path) -> Identity:
    """An identity file.

    Raises:
        ConfigError: it cannot be read or is no identity; says the line and the cure.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Make one: cotune audit init") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Expected a YAML file in UTF-8") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(
            f"{path}{line}: not YAML ({problem}). Put texts with : or # in quotes; "
            "cotune audit init writes a file to start from"
        ) from None
    return _File(path, text).identity(raw)


@dataclass(frozen=True, slots=True)
class _File:
    """An identity file while it is checked: knows where its keys stand."""

    path: Path
    text: str

    def identity(self, raw: Any) -> Identity:
        if not isinstance(raw, dict):
            came = "nothing" if raw is None else f"a {type(raw).__name__}"
            raise ConfigError(
                f"{self.path}: got {came}; expected keys such as name and maker. Make one: cotune audit init"
            )
        for key in raw:
            if key not in KEYS:
                raise self.wrong(
                    str(key), f"unknown key; known: {', '.join(KEYS)}.{suggestion(str(key), KEYS)}"
                )
        known = raw.get("known_others", True)
        if not isinstance(known, bool):
            raise self.wrong("known_others", f"got {known!r}; expected true or false")
        more = {
            self.one(name, "others"): self.several(spelt or [], "others")
            for name, spelt in self.group(raw, "others").items()
        }
        return Identity(
            self.one(raw.get("name"), "name"),
            self.one(raw.get("maker"), "maker"),
            self.several(raw.get("aliases") or [], "aliases"),
            {
                self.language(key): self.several(said, "facts")
                for key, said in self.group(raw, "facts").items()
            },
            {**(OTHERS if known else {}), **more},
        )

    def group(self, raw: Mapping[str, Any], key: str) -> Mapping[Any, Any]:
        """A mapping; an empty one where there is none."""
        value = raw.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            form = "en: [...]" if key == "facts" else "Name: [other spelling, ...]"
            raise self.wrong(key, f"got {_short(value)}; expected lines such as `{form}`")
        return value

    def language(self, value: Any) -> str:
        if value not in LANGUAGES:
            raise self.wrong("facts", f"got the language {value!r}; expected {' or '.join(LANGUAGES)}")
        return str(value)

    def several(self, value: Any, key: str) -> tuple[str, ...]:
        """A list of texts; one text stands for a list of one."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise self.wrong(key, f"got {_short(value)}; expected a list of texts")
        return tuple(self.one(item, key) for item in values)

    def one(self, value: Any, key: str) -> str:
        if value is None:
            raise self.wrong(key, "missing; say it as the model should")
        if not isinstance(value, str):
            raise self.wrong(key, f"got {_short(value)}, which is no text; put it in quotes")
        if not value.strip():
            raise self.wrong(key, "is blank; expected a text")
        return value.strip()

    def wrong(self, key: str, what: str) -> ConfigError:
        lines = self.text.splitlines()
        found = next((n for n, line in enumerate(lines, 1) if re.match(rf"{re.escape(key)}\s*:", line)), None)
        return ConfigError(f"{self.path}{f':{found}' if found else ''}: {key}: {what}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def write(path: Path, name: str, maker: str) -> Path:
    """Write `scaffold` to a new file.

    Raises:
        ConfigError: there is a file already, or it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(scaffold(name, maker))
    except FileExistsError:
        raise ConfigError(f"--out {path}: there is one already. Give another name, or edit it.") from None
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror})") from error
    return path


def scaffold(name: str, maker: str) -> str:
    """The text of an identity file to start from, with comments; `load` reads it.

    Raises:
        ConfigError: the name or the maker is blank.
    """
    for key, value in (("name", name), ("maker", maker)):
        if not value.strip():
            raise ConfigError(f"identity: {key} is blank; say it as the model should")
    told = json.dumps([f"{name} is a language model."], ensure_ascii=False)
    return f"""\
# Who the model under audit is. `cotune audit` asks it in many ways and compares what it says with this file.
# Meant for models that you are responsible for: to examine your own, not to attack others'.

# What the model should call itself, and who made it.
name: {json.dumps(name.strip(), ensure_ascii=False)}
maker: {json.dumps(maker.strip(), ensure_ascii=False)}

# Other names that are right too, of the model or of its maker: spellings, languages, the parent company.
aliases: []

# More that it may say of itself, in short sentences. A judge behind an endpoint reads them; the rules do not.
facts:
  en: {told}
  zh: []

# Well-known models and makers count as somebody else's identity, except what stands above.
# false: only those that you list below.
known_others: true

# Identities to look for besides: a name and its other spellings, e.g.  Teacher: [Teacher-7B, Teacher Labs]
others: {{}}
"""
