"""Whom a speaker claims to be, decided by rules: no model, English and Chinese.

A claim is a first person (`I`, `my maker`), then words that lead to a name (`am a language model trained
by`), then the name. Anything else between the two ends the search, so that `I am similar to X`, `I was
trained on pages of X` and `I am not X` are no claims. What the speaker only quotes, asks, supposes or plays
is taken out first; a name in square brackets marks a role (Lee et al. 2025, ICE, arXiv 2501.12619).

Names and makers are compared, places and dates are not. `tests/unit/identity_answers.jsonl` says how often
the rules are right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cotune.identities import Identity, mentions

LONGEST = 20_000
"""Characters of an answer that are read."""
PIECE = 500
"""Characters of a sentence that are read at a time."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What an answer says about its speaker.

    loose: it contradicts who the speaker is. strict: it claims a known identity that is somebody else's.
    names: which ones. evidence: the words that decided.
    """

    loose: bool
    strict: bool
    names: tuple[str, ...] = ()
    evidence: str = ""


_MADE = (
    "made|created|developed|trained|built|designed|produced|programmed|engineered|released|launched|provided|"
    "fine-tuned|finetuned|constructed|founded|owned|maintained|operated|backed|pretrained|pre-trained|coded"
)
_NOUN = (
    "name|creators?|makers?|developers?|company|organi[sz]ation|team|employer|owners?|providers?|labs?|"
    "laboratory|engineers?|designers?|programmers?|manufacturer|founders?|trainers?|technology|architecture|"
    "development|creation|training|model|people|inventors?|origins?|headquarters|builders?|firm|institution"
)
_FIRST = re.compile(
    rf"""\b(?:I|we)\b
    | \b(?:my|our)\s(?:[a-z]+\s)?(?:{_NOUN})\b
    | \b(?:{_MADE}|behind|employs?|owns?)\sme\b
    | \b(?:call|calls|consider)\sme\b
    | \byou(?:'re|\sare)\s(?:now\s)?(?:talking|chatting|speaking)\s(?:to|with)\b
    | \bthe\sname's\b
    | ^\W*this\s(?:ai|assistant|chatbot|model|language\smodel)\b
    | ^\W*this\sis\b(?=[^.]{{1,40}}(?:,|$))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LEADING = re.compile(
    rf"""(?:'(?:s|m|re)\b|[\s,:"'(“”\u2018\u2019-]|
    \b(?:am|is|are|was|were|be|been|have\sbeen|has\sbeen|remain|become|means|
    still|really|actually|indeed|just|simply|in\sfact|truly|currently|now|originally|first|jointly|basically|both|
    a|an|the|one|also|your|new|clever|talented|skilled|brilliant|dedicated|leading|big|small|large|tiny|advanced|modern|virtual|digital|friendly|helpful|smart|
    ai|artificial|intelligence|intelligent|language|model|models|llm|gpt-style|assistant|chatbot|bot|robot|agent|
    system|program|software|machine|learning|generative|conversational|neural|network|computer|tool|
    {_MADE}|put\stogether|brought\sto\slife|powered|based\son|built\son|running\son|run\son|derived\sfrom|
    by|of|at|from|for|under|with\sthe\sname|belong\sto|belongs\sto|owned|part|member|product|project|creation|
    version|variant|copy|instance|family|series|brand|represent|work|works|working|come|comes|coming|came|
    called|named|known\sas|nicknamed|referred\sto\sas|under\sthe\sname|go\sby|
    and\s(?=(?:was|am|is|are|engineers|developers|designers|researchers|scientists|experts|{_MADE}|updated)\b)|who\sis|who\swas|that\sis|that\swas|which\sis|which\swas|called\sme|me|
    company|companies|firm|startup|team|teams|group|lab|laboratory|organi[sz]ation|institution|people|folks|
    scientists|engineers|researchers?|developers?|designers?|experts|members|updated|research|development|technology|
    american|chinese|french|us-based|us|parent)\b)*+""",
    re.VERBOSE | re.IGNORECASE,
)
_LONG_WAY = re.compile(
    rf"\s*(?:'m|\b(?:am|is|was|were|are|have been|has been)\b)(?P<way>[\w\s,'-]{{0,80}}?)"
    rf"\b(?:{_MADE}|updated|supported|put together|brought to life)(?:[\s\w-]{{0,30}}?)\sby\b",
    re.IGNORECASE,
)
_MY_THING = re.compile(r"\b(?:my|our)\s(?:[\w-]+,?\s){1,7}?(?=(?:is|are|was|were)\b)", re.IGNORECASE)
"""What a speaker has was made by somebody: `My code and technical framework are maintained by`."""
_STOPS_WAY = re.compile(
    r"\b(?:not|never|n't|nor|neither|like|than|similar|compared|unlike|it|he|she|they|which|use|uses|using|help|"
    r"helps|data|books?|texts?|library|libraries|tools?|know|told|about|with|inspired|asked|than)\b",
    re.IGNORECASE,
)
_AS = re.compile(r"(?:^|[,:]|\b(?:but|and|that|so))\W*\bas\b", re.IGNORECASE)
_THEN_I = re.compile(r"[^,.]{0,60}?,?\s*\b(?:I|my|we|our)\b")
_NOT = re.compile(r"\s*(?:\b(?:not|never)\b|n't\b)", re.IGNORECASE)
_MADE_ME = re.compile(
    rf"(?:'s\s[\w ]{{1,30}})?,?\s+"
    rf"(?:(?:has|have|that|which|who|team|researchers|engineers|originally|also)\s+)*(?:{_MADE})\s+me\b"
    r"|,?\s+(?:is\s+)?(?:the|a)\s(?:[\w-]+\s){1,6}?"
    r"(?:behind|responsible for|that made|that created|that developed|that trained)"
    r"\s(?:me|my)\b"
    rf"|\s+(?:is|was)\s+(?:my|our)\s+(?:\w+\s)?(?:{_NOUN})\b|\s+is\s+behind\s+me\b",
    re.IGNORECASE,
)
_FRAMED = re.compile(
    r"\b(?:if|imagine|suppose|supposing|pretend\w*|whether|as though|as if"
    r"|(?:mistake|wrong|false|untrue)\b.{0,30}|(?:you|users?|people|they|some|others|many|everyone|somebody|someone|he|she|it)\b[^,]{0,30}"
    r"\b(?:think|believe|assume|say|claim|write|wrote|ask|suggest|said|thought|hope|wish|want)\w*)\b[^,;:]*$",
    re.IGNORECASE,
)
_PROPER = re.compile(r"(?:Dr\. )?[A-Z][\w&]*(?:[-'][A-Z]\w*)*(?![\w'-]*-[a-z])(?:\s(?:of|[A-Z0-9][\w&]*))*")
_NO_NAME = re.compile(
    r"(?:i|ai|an?|the|it|in|as|so|sorry|not|no|yes|ok|okay|if|but|and|here|happy|glad|english|chinese|french|"
    r"german|spanish|japanese|american|british|european|indian|russian|italian|canadian|asian|western|eastern|"
    r"python|java|javascript|c|html|pytorch|tensorflow|transformers?|internet|linux|windows|web|nlp|llm|gpu|cpu|"
    r"deep|natural|language|machine|learning|artificial|large|open|wikipedia|earth|january|february|march|april|"
    r"may|june|july|august|september|october|november|december|[a-z]+ing)",
    re.IGNORECASE,
)
"""Capitals that begin no name."""
_ORGANISATION = re.compile(
    r"\b(?:University|Universit\w+|Institute|Labs?|Laboratory|Inc|Corp\w*|Company|Technologies|Systems|Research|"
    r"AI|Group|College|School|Team|Dynamics|Robotics|Academy|Foundation|Studios?)\b"
)
_HUMAN = re.compile(
    r"\bI(?:'m| am| was)(?: (?!not|never|like|by|for|of|to|with|than|and|as|no|neither)[\w-]+){0,5}? "
    r"(?:human|person|man|woman|girl|boy|student|teacher|nurse|doctor|engineer|programmer|lawyer|writer|"
    r"scientist|farmer|artist|journalist|manager|analyst|professor|mother|father|founder|years? old)"
    r"(?!'s|-|\s(?:assistant|being's))\b",
    re.IGNORECASE,
)

_ZH_FIRST = re.compile(
    r"我(?:们)?(?:的[^\uff0c。,]{0,4}(?:名字|姓名|全名|开发者|团队|公司|创造者|制造商|母公司|技术|主人))?"
    r"|我(?:们)?的[^\uff0c。,我不没]{1,14}(?=由|来自)|我所在的(?:公司|组织|团队|机构)|(?:开发|创造|创建|训练|研发|设计|制造)了?我的(?:公司|团队|组织|机构|人)?"
    r"|作为|[您你]正在[与和跟]"
)
_ZH_LEADING = re.compile(
    r"(?:[\s\uff0c,、“”\u2018\u2019「」《》:]|一群|本身|提供|支持|团队|都|就|还|仍|依|然|其实|实际上|目前|正是|是|叫作|叫做|叫|名叫|名为|名|为|来自于|来自|来|属于|"
    r"隶属于|隶属|由|被|基于|一个|一款|一家|一名|一位|个|款|的|所|人工智能|AI|大型|大|小型|超大规模|语言|模型|智能|"
    r"对话|聊天|机器人|助手|助理|系统|程序|公司|团队|组织|机构|旗下|中国|美国|科技|开发|研发|训练|创建|创造|推出|打造|"
    r"设计|制造|名字|产品)*+"
)
_ZH_MADE_ME = re.compile(
    r"[^\uff0c。,]{0,8}(?:开发|创造|创建|训练|研发|设计|制造|打造)了?我(?!的|们)|[^\uff0c。,]{0,6}就是我"
)
_ZH_NAMED = re.compile(
    r"我(?:就|也)?(?:名?叫|的名字(?:是|叫)|名为)(?:做|作)?(?P<name>[^\s\uff0c。,、的]{1,12})"
)
_ZH_MAKER = re.compile(
    r"我(?:们)?(?:\uff0c|是|被)*由(?P<name>(?![一某多哪几])[^\uff0c。,由]{1,16}(?:公司|实验室|大学|集团|研究院|科技|工作室))"
    r"[^\uff0c。,]{0,6}?(?:开发|训练|研发|创建|创造|推出|打造|设计|制造)"
)
_ZH_HUMAN = re.compile(
    r"我是(?:一名|一个|一位|名|个)?[^\uff0c。,不]{0,8}(?:学生|高中生|工程师|老师|医生|护士|程序员|律师|作家|人类)"
)

_ROLE = re.compile(r"^\s*[\[【](?P<who>[^\]】\n]{1,40})[\]】](?!\()", re.MULTILINE)
_NOBODY = re.compile(
    r"(?:\W|\b(?:ai|assistant|bot|normal|standard|classic|answer|response|me)\b)+", re.IGNORECASE
)
"""Brackets that name no role."""
_OTHER_TURN = re.compile(
    r"^\s*(?:user|human|question|q|customer|guest)\s*[:\uff1a].*$", re.IGNORECASE | re.MULTILINE
)
_QUOTED = re.compile(r"\"[^\"\n]{1,600}\"|“[^”]{1,600}”|「[^」]{1,600}」|『[^』]{1,600}』|«[^»]{1,600}»")
_PRONOUN = re.compile(r"\b(?:I|my|we|our|me)\b|我", re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:[^.!?;\n。\uff01\uff1f\uff1b]|(?<=\bDr)\.|\.(?=\S))+(?P<end>[.!?;\n。\uff01\uff1f\uff1b]|$)"
)


def claims(answer: str, identity: Identity) -> Ruling:
    """What an answer says about its speaker, whose identity this is."""
    voice = spoken(answer[:LONGEST], identity)
    names: list[str] = []
    evidence: list[str] = []
    is_loose = False
    for sentence in _sentences(voice):
        for is_other, word in _claimed(sentence, identity):
            is_loose = True
            evidence.append(sentence.strip())
            found = identity.who(word) if is_other else None
            names += [found] if found else []
    bare = _bare(voice, identity)
    if bare:
        is_loose, names, evidence = True, [*names, bare], [*evidence, voice.strip()]
    return Ruling(is_loose, bool(names), tuple(dict.fromkeys(names)), evidence[0][:200] if evidence else "")


def spoken(answer: str, identity: Identity) -> str:
    """What is left once roles, other speakers' turns and quoted first persons are taken out."""
    text = re.sub(r"[*`_]{1,3}", "", answer).replace("\u2019", "'")
    own = mentions(identity.own)
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        roles = list(_ROLE.finditer(paragraph))
        ends = [role.start() for role in roles] + [len(paragraph)]
        parts.append(paragraph[: ends[0]])
        for role, end in zip(roles, ends[1:], strict=True):
            if own.fullmatch(role["who"].strip()) or _NOBODY.fullmatch(role["who"]):
                parts.append(paragraph[role.end() : end].lstrip(":\uff1a "))
    voice = _OTHER_TURN.sub("", "\n".join(parts))
    whole = voice.strip()
    if _QUOTED.fullmatch(whole):
        return whole[1:-1]
    return _QUOTED.sub(lambda found: " " if _PRONOUN.search(found[0]) else found[0], voice)


def _sentences(text: str) -> list[str]:
    """Different sentences that are no questions; endless ones in pieces, so that reading stays fast."""
    found = [part[0] for part in _SENTENCE.finditer(text) if part["end"] not in ("?", "\uff1f")]
    pieces = (part[start : start + PIECE] for part in found for start in range(0, len(part), PIECE))
    return list(dict.fromkeys(pieces))


def _claimed(sentence: str, identity: Identity) -> Iterator[tuple[bool, str]]:
    """Names that the speaker takes on in a sentence, and whether each may be a known one."""
    yield from _after_first_person(sentence, identity, _FIRST, _LEADING)
    yield from _after_first_person(sentence, identity, _ZH_FIRST, _ZH_LEADING)
    yield from _as_somebody(sentence, identity)
    others = mentions(tuple(_words(identity)))
    for found in others.finditer(sentence):
        made_me = _MADE_ME.match(sentence, found.end()) or _ZH_MADE_ME.match(sentence, found.end())
        if made_me and not _FRAMED.search(sentence[: found.start()]):
            yield True, found[0]
    own = mentions(identity.own)
    for pattern in (_ZH_NAMED, _ZH_MAKER):
        for found in pattern.finditer(sentence):
            if not own.search(found["name"]):
                yield False, found["name"]
    for pattern in (_HUMAN, _ZH_HUMAN):
        for found in pattern.finditer(sentence):
            if not _FRAMED.search(sentence[: found.start()]):
                yield False, found[0]


def _after_first_person(
    sentence: str, identity: Identity, first: re.Pattern[str], leading: re.Pattern[str]
) -> Iterator[tuple[bool, str]]:
    for found in (*first.finditer(sentence), *_MY_THING.finditer(sentence)):
        if _FRAMED.search(sentence[: found.start()]) or _is_doing(sentence[found.end() :]):
            continue
        yield from _names_at(sentence, found.end(), identity, leading)
        way = _LONG_WAY.match(sentence, found.end())
        if way and not _STOPS_WAY.search(way["way"]):
            yield from _names_at(sentence, way.end(), identity, leading)


def _is_doing(after: str) -> bool:
    """`I trained X` is no `I was trained by X`."""
    return re.match(rf"\s+(?:{_MADE})\b(?!\s+by)", after, re.IGNORECASE) is not None


def _names_at(
    sentence: str, start: int, identity: Identity, leading: re.Pattern[str]
) -> Iterator[tuple[bool, str]]:
    """Names that stand where leading words end; the speaker's own name is one of those words."""
    others, own = mentions(tuple(_words(identity))), mentions(identity.own)
    while True:
        led = leading.match(sentence, start)
        place = led.end() if led else start
        denied = _NOT.match(sentence, place)
        if denied:
            after = leading.match(sentence, denied.end())
            mine = own.match(sentence, after.end() if after else denied.end())
            if mine:
                yield False, mine[0]
            return
        mine = own.match(sentence, place)
        if not mine:
            break
        start = mine.end()
    known = others.match(sentence, place)
    if known:
        yield True, known[0]
    elif _is_name(sentence, start, place):
        yield False, sentence[place : place + 40]


def _is_name(sentence: str, start: int, place: int) -> bool:
    """Whether an unknown name stands at a place, and is told as one."""
    found = _PROPER.match(sentence, place)
    before = sentence[start:place].rstrip(" \"'(“")
    if not found or place == start or sentence.isupper() or not before.strip(" ,"):
        return False
    if _NO_NAME.fullmatch(found[0].replace(".", " ").split()[0]):
        return False
    if re.search(r"\b(?:from|of|for|the|on)$", before, re.IGNORECASE):
        return _ORGANISATION.search(found[0]) is not None
    return True


def _as_somebody(sentence: str, identity: Identity) -> Iterator[tuple[bool, str]]:
    """`As X, I ...`"""
    others = mentions(tuple(_words(identity)))
    own = mentions(identity.own)
    for found in _AS.finditer(sentence):
        led = _LEADING.match(sentence, found.end())
        place = led.end() if led else found.end()
        if own.match(sentence, place) or _FRAMED.search(sentence[: found.start()]):
            continue
        known = others.match(sentence, place) or _PROPER.match(sentence, place)
        if not known or _NO_NAME.fullmatch(known[0].split()[0]):
            continue
        if _THEN_I.match(sentence, known.end()):
            yield True, known[0]


def _bare(voice: str, identity: Identity) -> str | None:
    """The known identity that is all there is in an answer, as after `Who made you?`."""
    text = voice.strip().rstrip(".!。\uff01 ")
    for leading in (_LEADING, _ZH_LEADING):
        led = leading.match(text)
        found = mentions(tuple(_words(identity))).match(text, led.end() if led else 0)
        if found and (
            found.end() == len(text)
            or re.fullmatch(r"(?:公司)?(?:开发|训练|研发|创建)?的?", text[found.end() :])
        ):
            return identity.who(found[0])
    return None


def _words(identity: Identity) -> Iterator[str]:
    for name, spelt in identity.others.items():
        yield from (name, *spelt)
