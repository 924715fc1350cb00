"""Texts from a chat endpoint that speaks OpenAI's protocol: vLLM, llama.cpp's server, or a hosted model.

Answers are read field by field, because servers leave out what they like. What an endpoint says about an
error is never repeated: it may quote the prompt or the key. Needs the extra `endpoint`.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from cotune.endpoint_settings import EndpointSettings, key_of
from cotune.errors import ConfigError, CotuneError, RunError
from cotune.records import Keep, Sampling, Written, readable

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

LONGEST_WAIT = 120.0
"""Seconds between two tries at most; an endpoint that wants more has the run stopped, to be resumed."""
MANY = 8
"""Texts of one call of which at least one must make sense; of fewer none may."""
MOST_TOKENS = 10**9
"""Of one answer, either way; an endpoint that says more has not counted."""
_CONNECT_SECONDS = 10.0
_LETTERS_PER_TOKEN = 4
"""A rule of thumb for English, used where an endpoint does not count."""
_OF_A_PROMPT = (
    "content_filter ResponsibleAIPolicyViolation invalid_prompt context_length_exceeded "
    "string_above_max_length exceed_context_size_error"
)
"""Why one prompt is refused while others are answered, in the words of OpenAI, Azure and llama.cpp."""


@dataclass(slots=True)
class Usage:
    """What an endpoint has answered so far.

    num_empty: answers without a text that can be used, refusals of a single prompt among them; num_estimated:
    answers whose tokens it did not count, so that they are estimated from the length of the texts.
    """

    num_answers: int = 0
    num_empty: int = 0
    num_estimated: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class _Trouble(NamedTuple):
    """Why a try gave no answer, and how many seconds the endpoint wants to be left alone."""

    what: str
    wait: float = 0.0


@dataclass(slots=True)
class _Call:
    """What one call of `write` has found so far.

    held: texts that are not handed on to `keep` yet, because none made sense so far; None where one did, or
    where they are too few to tell. refused: how many prompts were refused, by the endpoint's word for it.
    """

    keep: Keep | None
    held: dict[int, Written] | None
    found: dict[int, Written] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, row: int, new: Written, makes_sense: bool) -> None:
        """Hand on a text, and those held back before it; or hold it back, too."""
        self.found[row] = new
        if self.held is not None and not makes_sense:
            self.held[row] = new
            return
        self.let_go({row: new})

    def let_go(self, new: dict[int, Written]) -> None:
        """Hand on all that is held back, and some more."""
        some, self.held = {**(self.held or {}), **new}, None
        if self.keep and some:
            self.keep(some)


class EndpointWriter:
    """See `cotune.pool.Writer`. `usage` counts over all calls of `write`.

    Args:
        settings: where and how.
        backoff_seconds: before the second try; it doubles from try to try.
        makes_sense: of many texts one at least must; None: whatever it says is an answer.

    Raises:
        ConfigError: the address, the name of the key's variable or the key cannot be used.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        backoff_seconds: float = 0.5,
        makes_sense: Callable[[str], bool] | None = None,
    ) -> None:
        self.settings, self.backoff_seconds, self.usage = settings, backoff_seconds, Usage()
        self.makes_sense = makes_sense
        self._has_answered = False
        self._silent: set[str] = set()  # prompts that had no text, and were let pass
        check(settings)

    @property
    def fingerprint(self) -> str:
        """The address and the model's name there; nothing else is known about an endpoint."""
        return f"{self.settings.url.rstrip('/')}#{self.settings.model}"

    @property
    def cost(self) -> float | None:
        """Of all answers so far; None without a price."""
        prices = (self.settings.price_in, self.settings.price_out)
        if prices == (None, None):
            return None
        return (self.usage.tokens_in * (prices[0] or 0) + self.usage.tokens_out * (prices[1] or 0)) / 1e6

    def write(self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None = None) -> list[Written]:
        """What the endpoint answers to each prompt, as one message of a user.

        Raises:
            RunError: it cannot be reached, is overloaded or fails, also after further tries; it refuses what
                it took before; or none of its texts makes sense, and then it keeps none.
            ConfigError: it refuses the key, the model or the request. (One that it refuses only because of
                its prompt has an empty text.)
        """
        return _run(self._write_all(prompts, sampling, keep))

    async def _write_all(
        self, prompts: Sequence[str], sampling: Sampling, keep: Keep | None
    ) -> list[Written]:
        import httpx2

        call = _Call(keep, {} if len(prompts) >= MANY else None)
        troubles: list[CotuneError] = []
        waiting = iter(enumerate(prompts))  # each prompt goes to the first worker that is free
        key = key_of(self.settings)

        async def work() -> None:
            for row, prompt in waiting:
                try:
                    response = await self._answer(client, self._body(prompt, sampling))
                    written, why = self._read(response, prompt, sampling), _refusal(response)
                    call.refused.update([why] if why else [])
                    is_sense = not why and (self.makes_sense is None or self.makes_sense(written.text))
                    call.add(row, written, is_sense)
                except CotuneError as trouble:
                    troubles.append(trouble)
                if troubles:  # what is under way is waited for and kept; nothing new is asked
                    return

        settings = self.settings
        async with (
            httpx2.AsyncClient(
                base_url=settings.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx2.Timeout(settings.timeout_seconds, connect=_CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=settings.concurrency),
                verify=settings.url.startswith("https:"),  # certificates take a tenth of a second to load
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(settings.concurrency, len(prompts))):
                group.create_task(work())
        if troubles:
            raise troubles[0]
        self._doubt(call, prompts)
        return [call.found[row] for row in range(len(prompts))]

    def _doubt(self, call: _Call, prompts: Sequence[str]) -> None:
        """Refuse many texts of which none makes sense; a prompt known to have none is not one of them."""
        held = call.held or {}
        doubted = [one for row, one in held.items() if one.text or prompts[row] not in self._silent]
        if len(doubted) >= MANY:
            num_empty = sum(not one.text for one in held.values())
            words = ", ".join(sorted(call.refused))
            refused = f"; it refused {call.refused.total()} ({words})" if words else ""
            raise RunError(
                f"{self._where}: none of its {len(held)} texts ends on an answer, and {num_empty} are empty"
                f"{refused}. See what it says to such a question, that question and answer fit into it, and "
                "that it may say enough (path_tokens)"
            )
        call.let_go({})
        self._silent |= {prompts[row] for row, one in call.found.items() if not one.text}

    def _body(self, prompt: str, sampling: Sampling) -> dict[str, Any]:
        """A request; what would change nothing is left out, because not every server knows it."""
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": sampling.temperature,
            self.settings.length_key: sampling.max_new_tokens,
        }
        if sampling.temperature:
            body["seed"] = sampling.seed % 2**31
        if sampling.temperature and sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body

    async def _answer(self, client: AsyncClient, body: dict[str, Any]) -> Response:
        """The answer to one request, after as many tries as are allowed."""
        num_tries = 0
        while True:
            found = await self._try(client, body)
            if not isinstance(found, _Trouble):
                return found
            pause = min(LONGEST_WAIT, self.backoff_seconds * 2.0 ** min(num_tries, 20))
            num_tries += 1
            if found.wait > LONGEST_WAIT or num_tries > self.settings.max_retries:
                raise self._gave_up(found, num_tries)
            await asyncio.sleep(max(found.wait, pause))

    def _gave_up(self, last: _Trouble, num_tries: int) -> RunError:
        tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
        asks = f", and it wants to be left alone for {last.wait:.0f} s" if last.wait > LONGEST_WAIT else ""
        return RunError(
            f"{self._where}: gave up after {tries}, the last one: {last.what}{asks}. "
            "See that it runs and has capacity left"
        )

    async def _try(self, client: AsyncClient, body: dict[str, Any]) -> Response | _Trouble:
        import httpx2

        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                response = await client.post("chat/completions", json=body)
        except httpx2.ConnectTimeout:
            return _Trouble(f"no connection within {_CONNECT_SECONDS:g} s")
        except (httpx2.TimeoutException, TimeoutError):
            return _Trouble(f"no answer within {self.settings.timeout_seconds:g} s")
        except httpx2.ConnectError as error:
            return _Trouble(f"no connection ({error})")
        except httpx2.RequestError as error:
            return _Trouble(f"the connection broke ({type(error).__name__})")
        if response.is_success and _at(_parsed(response), "choices", 0) is not None:
            self._has_answered = True
            return response
        if _refusal(response):
            return response
        status, code = response.status_code, _error_code(response)
        what = f"HTTP {status}, {code}" if code else f"HTTP {status}"
        wait = _wanted_wait(response.headers.get("retry-after", ""))
        if response.is_success:  # as some proxies tell of trouble behind them
            return _Trouble(f"{what} without an answer", wait)
        if code == "insufficient_quota":
            raise RunError(f"{self._where}: what the key may spend is used up ({what}). Raise its limit")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Trouble(what, wait)
        # a key can be changed while a run pauses, and what was taken before may be taken again
        kind = RunError if status in (401, 403) or self._has_answered else ConfigError
        raise kind(f"{self._where}: {self._cure(status, what)}")

    @property
    def _where(self) -> str:
        return f"endpoint {self.settings.url}, model {self.settings.model!r}"

    def _cure(self, status: int, what: str) -> str:
        """What a user does about a refusal."""
        variable = self.settings.api_key_env
        if status in (401, 403) and variable is None:
            return f"it wants a key ({what}). Name the environment variable that holds one: api_key_env"
        if status in (401, 403):
            return f"it refuses the key in ${variable} ({what}). Put one there that may use this model"
        if status == 404:
            return f"no such model or no such address ({what}). Compare with {self.settings.url}/models"
        return (
            f"it refuses the request ({what}). Expected an endpoint that takes temperature, "
            f"{self.settings.length_key}, and seed, top_p and stop where they are set, and that can read the "
            "longest prompt together with max_new_tokens"
        )

    def _read(self, response: Response, prompt: str, sampling: Sampling) -> Written:
        """The text of an answer, empty if there is none or the prompt is refused; counted either way."""
        answer = _parsed(response) if response.is_success else None
        said = _at(answer, "choices", 0, "message", "content")
        text = sampling.cut(readable(said)) if isinstance(said, str) else ""
        text = text if text.strip() else ""
        counts = [_at(answer, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
        is_counted = all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts)
        counts = counts if is_counted else [-(-len(part) // _LETTERS_PER_TOKEN) for part in (prompt, text)]
        self.usage.num_answers += 1
        self.usage.num_empty += not text
        self.usage.num_estimated += not is_counted
        self.usage.tokens_in += counts[0]
        self.usage.tokens_out += counts[1]
        is_cut = _at(answer, "choices", 0, "finish_reason") in ("length", "content_filter")
        return Written(text, counts[0], counts[1], bool(text) and not is_cut)


def check(settings: EndpointSettings) -> None:
    """Refuse an address or a key's variable that cannot be used, before either is written anywhere.

    Raises:
        ConfigError: it does not show what may be a secret.
    """
    _check_address(settings.url)
    key_of(settings)


def _check_address(url: str) -> None:
    """Refuse what is no address, or holds a secret; it is not shown then."""
    try:
        import httpx2
    except ImportError:
        raise ConfigError(
            "an endpoint needs the package httpx2, which is missing. Get it: pip install 'cotune[endpoint]'"
        ) from None
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        address = httpx2.URL("")
    if not address.host or address.userinfo or address.query:
        raise ConfigError(
            "endpoint url: expected an address such as http://localhost:8000/v1, without user name, password "
            "or question mark; a key belongs in an environment variable, see api_key_env"
        )


def _run(work: Coroutine[Any, Any, list[Written]]) -> list[Written]:
    """What a coroutine returns; run in another thread where this one has a loop already, as in a notebook."""
    if not _has_loop():
        return asyncio.run(work)
    with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        task = loop.create_task(work)
        done = pool.submit(loop.run_until_complete, task)
        try:
            return done.result()
        except BaseException:  # Ctrl-C comes to this thread
            loop.call_soon_threadsafe(task.cancel)
            raise


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _parsed(response: Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _at(value: Any, *path: str | int) -> Any:
    """What stands at a place in parsed JSON; None if there is no such place."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _error_code(response: Response) -> str:
    """The kind of an error, where the endpoint names one: a word, so that it can quote nothing."""
    answer = _parsed(response)
    codes = [_at(answer, "error", "code"), _at(answer, "error", "type")]
    return next((code for code in codes if isinstance(code, str) and re.fullmatch("[a-z_]{1,40}", code)), "")


def _refusal(response: Response) -> str:
    """The word for why this one prompt is refused; empty for an answer, and where it is not the prompt."""
    if response.status_code not in (400, 413, 422):
        return ""
    error = _at(_parsed(response), "error")
    words = [_at(error, "code"), _at(error, "type"), _at(error, "innererror", "code")]
    return next((word for word in words if isinstance(word, str) and word in _OF_A_PROMPT.split()), "")


def _wanted_wait(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 if it says nothing."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
