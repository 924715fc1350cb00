"""Texts from an endpoint, against a real server on this machine that behaves as badly as it is told to."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
from email.utils import formatdate

import pytest

from cotune.errors import ConfigError, RunError
from cotune.models.path_cache import CachedWriter, PathCache
from cotune.records import Sampling

pytest.importorskip("httpx2", reason="needs the extra `endpoint`: pip install 'cotune[endpoint]'")

from chat_server import HANG_UP, answer, serving
from cotune.models import endpoint
from cotune.models.endpoint import EndpointSettings, EndpointWriter

HOW = Sampling(max_new_tokens=32)
KEY = "sk-very-secret-9"
PROMPTS = [f"question {number}" for number in range(12)]


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("COTUNE_TEST_KEY", raising=False)


def writer(url, **changes):
    settings = {"url": url, "model": "m", "max_retries": 3, "timeout_seconds": 10.0, **changes}
    return EndpointWriter(EndpointSettings(**settings), backoff_seconds=0.001)


def texts(found):
    return [written.text for written in found]


def test_answers_come_in_the_order_of_the_prompts():
    def script(prompt, nth):
        time.sleep(0.05 if prompt.endswith(("0", "3")) else 0)
        return answer(prompt)

    told = {}
    with serving(script) as server:
        writes = writer(server.url + "/")
        found = writes.write(PROMPTS, HOW, told.update)
        assert writes.write([], HOW) == []
    assert texts(found) == [f"so {prompt}" for prompt in PROMPTS]
    assert told == dict(enumerate(found))
    assert next(iter(told)) != 0
    assert (found[0].tokens_in, found[0].tokens_out, found[0].finished) == (7, 3, True)
    usage = writes.usage
    assert (usage.num_answers, usage.tokens_in, usage.tokens_out) == (12, 84, 36)
    assert (usage.num_empty, usage.num_estimated) == (0, 0)
    assert writes.cost is None
    assert all("Authorization" not in headers for headers in server.headers)


def test_as_many_requests_are_under_way_as_allowed():
    def script(prompt, nth):
        time.sleep(0.02)
        return answer(prompt)

    with serving(script) as server:
        writer(server.url, concurrency=3).write(PROMPTS, HOW)
        assert server.most_busy == 3


def test_what_is_asked_for():
    with serving() as server:
        writer(server.url).write(["a"], HOW)
        drawn = Sampling(9, 0.7, 0.9, 2**31 + 5, ("\nQ",))
        writer(server.url, length_key="max_completion_tokens").write(["a"], drawn)
    plain, full = server.bodies
    message = [{"role": "user", "content": "a"}]
    assert plain == {"model": "m", "messages": message, "temperature": 0.0, "max_tokens": 32}
    assert full == {
        "model": "m",
        "messages": message,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["\nQ"],
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("reason", "finished"), [("stop", True), (None, True), ("length", False), ("content_filter", False)]
)
def test_a_text_that_was_cut_is_not_finished(reason, finished):
    with serving(lambda prompt, nth: answer(prompt, reason)) as server:
        (found,) = writer(server.url).write(["a"], HOW)
    assert (found.text, found.finished) == ("so a", finished)


def test_a_stop_string_that_a_server_leaves_in_is_cut():
    with serving() as server:
        (found,) = writer(server.url).write(["a b"], Sampling(stop=(" b",)))
    assert found.text == "so a"


def test_tokens_that_are_not_counted_are_estimated():
    with serving(lambda prompt, nth: answer(prompt, usage=False)) as server:
        writes = writer(server.url)
        (found,) = writes.write(["x" * 41], HOW)
    assert (found.tokens_in, found.tokens_out) == (11, 11)  # 41 and 44 letters, four a token
    assert writes.usage.num_estimated == 1


@pytest.mark.parametrize("count", [10**400, 10**9 + 1, -1, True, 7.0, "7", None])
def test_a_count_that_cannot_be_one_is_estimated(count):
    """One that is no count makes both be estimated, and the report can be written."""

    def script(prompt, nth):
        return 200, {**answer(prompt)[1], "usage": {"prompt_tokens": count, "completion_tokens": 3}}

    with serving(script) as server:
        writes = writer(server.url, price_in=1.0)
        (found,) = writes.write(["x" * 41], HOW)
    assert (found.tokens_in, found.tokens_out, writes.usage.num_estimated) == (11, 11, 1)
    assert writes.cost == pytest.approx(11 / 1e6)


def test_many_tokens_may_be_counted():
    usage = {"prompt_tokens": 10**9, "completion_tokens": 0}
    with serving(lambda prompt, nth: (200, {**answer(prompt)[1], "usage": usage})) as server:
        writes = writer(server.url)
        writes.write(["a"], HOW)
    assert (writes.usage.tokens_in, writes.usage.num_estimated) == (10**9, 0)


def test_cost_is_counted():
    with serving() as server:
        writes = writer(server.url, price_in=2.0, price_out=10.0)
        writes.write(PROMPTS, HOW)
        assert writes.cost == pytest.approx((84 * 2 + 36 * 10) / 1e6)
        only = writer(server.url, price_out=10.0)
        only.write(["a"], HOW)
        assert only.cost == pytest.approx(3 * 10 / 1e6)


TROUBLES = {
    "overloaded": (503, {}),
    "broken": (500, b"<html>oops</html>"),
    "limited": (429, {"error": {"code": "rate_limit_exceeded"}}),
    "hang_up": HANG_UP,
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_passing_trouble_is_tried_again(trouble):
    with serving(lambda prompt, nth: answer(prompt) if nth == 2 else trouble) as server:
        assert texts(writer(server.url).write(["a", "b"], HOW)) == ["so a", "so b"]
    assert server.asked == {"a": 3, "b": 3}


WORDS = (
    "HTTP 503",
    "HTTP 500",
    "HTTP 429, rate_limit_exceeded",
    "the connection broke (RemoteProtocolError)",
)


@pytest.mark.parametrize(("trouble", "words"), list(zip(TROUBLES.values(), WORDS, strict=True)), ids=TROUBLES)
def test_lasting_trouble_stops_the_run_with_one_line(trouble, words):
    with serving(lambda prompt, nth: trouble) as server, pytest.raises(RunError) as caught:
        writer(server.url, max_retries=2).write(["a"], HOW)
    assert str(caught.value) == (
        f"endpoint {server.url}, model 'm': gave up after 3 tries, the last one: {words}. "
        "See that it runs and has capacity left"
    )
    assert server.asked == {"a": 3}


def test_a_server_that_is_not_there():
    with serving() as server:
        url = server.url
    with pytest.raises(RunError, match=r"gave up after 1 try, the last one: no connection \("):
        writer(url, max_retries=0).write(PROMPTS, HOW)


def test_a_server_that_does_not_answer_in_time():
    def script(prompt, nth):
        time.sleep(0.2)
        return answer(prompt)

    with serving(script) as server, pytest.raises(RunError, match=r"2 tries.*no answer within 0\.05 s"):
        writer(server.url, timeout_seconds=0.05, max_retries=1).write(["a"], HOW)


def test_a_wait_that_the_server_wants_is_kept():
    trouble = (429, {}, {"Retry-After": "0.3"})
    with serving(lambda prompt, nth: answer(prompt) if nth else trouble) as server:
        assert texts(writer(server.url).write(["a"], HOW)) == ["so a"]
    assert server.times[1] - server.times[0] >= 0.3


def test_a_server_that_wants_a_long_pause_gets_it():
    trouble = (429, {}, {"Retry-After": "3600"})
    with (
        serving(lambda prompt, nth: trouble) as server,
        pytest.raises(RunError, match=r"1 try.*HTTP 429, and it wants to be left alone for 3600 s"),
    ):
        writer(server.url).write(["a"], HOW)
    assert server.asked == {"a": 1}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0), ("2", 2), ("1.5", 1.5), ("-3", 0), ("nan", 0), ("soon", 0), (formatdate(0, usegmt=True), 0)],
)
def test_retry_after_as_a_number_or_nonsense(header, seconds):
    assert endpoint._wanted_wait(header) == seconds


def test_retry_after_as_a_date():
    assert 55 < endpoint._wanted_wait(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_a_quota_that_is_used_up_is_not_tried_again():
    trouble = (429, {"error": {"code": "insufficient_quota"}})
    with (
        serving(lambda prompt, nth: trouble) as server,
        pytest.raises(RunError, match="may spend is used up"),
    ):
        writer(server.url).write(["a"], HOW)
    assert server.asked == {"a": 1}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {}, r"it wants a key \(HTTP 401\).*api_key_env"),
        (
            404,
            {"error": {"code": "model_not_found"}},
            r"no such model .*model_not_found\)\. Compare with .*/models",
        ),
        (400, {"error": {"type": "invalid_request_error"}}, r"invalid_request_error.*longest prompt"),
        (403, {"error": {"code": "content_filter"}}, r"it wants a key"),
        (422, b"not json", r"refuses the request \(HTTP 422\)"),
        (301, {}, r"refuses the request \(HTTP 301\)"),
    ],
)
def test_a_refusal_is_the_users_to_mend(status, body, words):
    with (
        serving(lambda prompt, nth: (status, body)) as server,
        pytest.raises(RunError if status in (401, 403) else ConfigError, match=words) as caught,
    ):
        writer(server.url).write(["a"], HOW)
    assert server.asked == {"a": 1}
    assert str(caught.value).startswith(f"endpoint {server.url}, model 'm': ")


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_named_by_its_variable(status, monkeypatch):
    monkeypatch.setenv("COTUNE_TEST_KEY", f" {KEY}\n")
    with serving(lambda prompt, nth: (status, {"error": {"message": f"bad key {KEY}"}})) as server:
        writes = writer(server.url, api_key_env="COTUNE_TEST_KEY")
        with pytest.raises(RunError, match=r"refuses the key in \$COTUNE_TEST_KEY") as caught:
            writes.write(["a"], HOW)
    assert KEY not in str(caught.value)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(vars(writes)) + writes.fingerprint


NO_ANSWER = {
    "no JSON": b"<html>hello</html>",
    "no UTF-8": b"\xff\xfe\xff",
    "a list": [1, 2],
    "no choices": {"choices": []},
    "choices that are none": {"choices": None},
    "nothing": b"",
    "nested too deep": b"[" * 100_000,
    "a number too long": b'{"choices": [1], "n": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("body", NO_ANSWER.values(), ids=NO_ANSWER)
def test_a_success_that_is_no_answer_is_asked_for_again(body):
    """As proxies say that there is trouble behind them; nothing of what they say is repeated."""
    with serving(lambda prompt, nth: (200, body) if prompt == "b" and nth == 0 else answer(prompt)) as server:
        writes = writer(server.url)
        assert texts(writes.write(["a", "b", "c"], HOW)) == ["so a", "so b", "so c"]
        assert (writes.usage.num_answers, writes.usage.num_empty) == (3, 0)
    assert server.asked == {"a": 1, "b": 2, "c": 1}
    with (
        serving(lambda prompt, nth: (200, body)) as server,
        pytest.raises(RunError, match=r"gave up after 2 tries, .* HTTP 200 without an answer\."),
    ):
        writer(server.url, max_retries=1).write(["a"], HOW)


def test_texts_of_which_none_makes_sense_are_not_kept(tmp_path):
    """They are held back until one does, and then all are kept."""
    cache = PathCache(tmp_path / "p.sqlite")
    with serving() as server:
        doubted, believed = writer(server.url), writer(server.url)
        doubted.makes_sense, believed.makes_sense = (lambda _: False), (lambda text: text == "so question 5")
        with pytest.raises(
            RunError, match=r"none of its 12 texts ends on an answer, .* 0 of 12 texts are kept"
        ):
            CachedWriter(doubted, cache).write(PROMPTS, HOW)
        for writes in (believed, doubted):  # the second finds them all
            found = CachedWriter(writes, cache).write(PROMPTS, HOW)
            assert texts(found) == [f"so {prompt}" for prompt in PROMPTS]
    assert set(server.asked.values()) == {2}


def test_of_few_texts_none_need_make_sense():
    few = PROMPTS[: endpoint.MANY - 1]
    with serving() as server:
        writes = writer(server.url)
        writes.makes_sense = lambda _: False
        kept = {}
        assert texts(writes.write(few, HOW, kept.update)) == [f"so {prompt}" for prompt in few]
        assert sorted(kept) == list(range(len(few)))


NONSENSE = {
    "no message": {"choices": [{}]},
    "no text": {"choices": [{"message": {"content": None}}]},
    "a number": {"choices": [{"message": {"content": 5}}]},
    "blanks": {"choices": [{"message": {"content": " \n"}}]},
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_an_empty_text_and_counted(body, tmp_path):
    def script(prompt, nth):
        return (200, body) if prompt == "b" and nth == 0 else answer(prompt)

    with serving(script) as server:
        writes = writer(server.url)
        cached = CachedWriter(writes, PathCache(tmp_path / "p.sqlite"))
        found = cached.write(["a", "b", "c"], HOW)
        assert texts(found) == ["so a", "", "so c"]
        assert not found[1].finished
        assert (writes.usage.num_answers, writes.usage.num_empty) == (3, 1)
        assert texts(cached.write(["a", "b", "c"], HOW)) == ["so a", "so b", "so c"]
    assert server.asked == {"a": 1, "b": 2, "c": 1}


OF_A_PROMPT = {
    "OpenAI, too long": (400, {"error": {"code": "context_length_exceeded"}}),
    "OpenAI, longer still": (400, {"error": {"code": "string_above_max_length"}}),
    "OpenAI, flagged": (400, {"error": {"code": "invalid_prompt", "type": "invalid_request_error"}}),
    "Azure": (400, {"error": {"code": "content_filter", "type": None}}),
    "Azure, inside": (
        400,
        {"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    ),
    "by its type": (413, {"error": {"code": 413, "type": "context_length_exceeded"}}),
    "llama.cpp": (422, {"error": {"code": 400, "type": "exceed_context_size_error"}}),
    "with a text": (400, {**answer("b")[1], "error": {"code": "content_filter"}}),
}


@pytest.mark.parametrize("refusal", OF_A_PROMPT.values(), ids=OF_A_PROMPT)
def test_a_prompt_that_is_refused_has_an_empty_text_and_the_others_go_on(refusal, tmp_path):
    with serving(lambda prompt, nth: refusal if prompt == "b" else answer(prompt)) as server:
        writes = writer(server.url)
        cached = CachedWriter(writes, PathCache(tmp_path / "p.sqlite"))
        found = cached.write(["a", "b", "c"], HOW)
        assert texts(found) == ["so a", "", "so c"]
        assert (found[1].tokens_out, found[1].finished) == (0, False)
        assert (writes.usage.num_answers, writes.usage.num_empty) == (3, 1)
        assert texts(cached.write(["a", "b", "c"], HOW)) == ["so a", "", "so c"]
    assert server.asked == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize("sense", [None, bool, lambda text: True])
def test_prompts_that_are_all_refused_are_no_success_and_nothing_is_kept(tmp_path, sense):
    trouble = (400, {"error": {"code": "content_filter", "message": "secret words"}})
    with serving(lambda prompt, nth: trouble) as server:
        writes = writer(server.url)
        writes.makes_sense = sense
        cached = CachedWriter(writes, PathCache(tmp_path / "p.sqlite"), keep_empty=True)
        for _ in range(2):
            with pytest.raises(
                RunError, match=r"none of its 12 .* 12 are empty.*refused 12 \(content_filter\).* 0 of 12"
            ) as caught:
                cached.write(PROMPTS, HOW)
    assert "secret" not in str(caught.value)
    assert set(server.asked.values()) == {2}


def test_prompts_that_were_refused_before_are_not_held_against_an_endpoint(tmp_path):
    """In the next round only they are asked for again; new ones that have no text are another matter."""
    trouble = (400, {"error": {"code": "content_filter"}})
    sad = PROMPTS[: endpoint.MANY]
    with serving(
        lambda prompt, nth: answer(prompt) if prompt in PROMPTS[endpoint.MANY :] else trouble
    ) as server:
        writes = writer(server.url)
        writes.makes_sense = bool
        cached = CachedWriter(writes, PathCache(tmp_path / "p.sqlite"))
        first = cached.write(PROMPTS, HOW)
        assert [not text for text in texts(first)] == [prompt in sad for prompt in PROMPTS]
        assert texts(cached.write(PROMPTS, HOW)) == texts(first)
        with pytest.raises(RunError, match="none of its 16 texts"):
            cached.write([*sad, *(f"new {prompt}" for prompt in sad)], HOW)


def test_a_refusal_after_an_answer_is_trouble_that_may_pass():
    """The endpoint has taken such a request before, so the configuration is not what is wrong."""
    refusals = {"b": (400, {"error": {"type": "invalid_request_error"}}), "c": (404, {})}
    with serving(lambda prompt, nth: refusals.get(prompt, answer(prompt))) as server:
        writes = writer(server.url)
        writes.write(["a"], HOW)
        for prompt, words in (("b", "refuses the request"), ("c", "no such model")):
            with pytest.raises(RunError, match=words):
                writes.write([prompt], HOW)
    assert server.asked == {"a": 1, "b": 1, "c": 1}


def within_a_loop(call):
    """What a call returns that a cell of a notebook makes."""

    async def cell():
        return call()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


def test_a_notebook_has_a_loop_already(tmp_path):
    with serving(lambda prompt, nth: (404, {}) if prompt == "x" else answer(prompt)) as server:
        writes = CachedWriter(writer(server.url), PathCache(tmp_path / "p.sqlite"))
        assert texts(within_a_loop(lambda: writes.write(PROMPTS, HOW))) == [f"so {one}" for one in PROMPTS]
        with pytest.raises(ConfigError, match="no such model"):
            within_a_loop(lambda: writer(server.url).write(["x"], HOW))
    assert server.asked == dict.fromkeys([*PROMPTS, "x"], 1)


@pytest.mark.parametrize("run", [within_a_loop, lambda call: call()], ids=["notebook", "script"])
def test_ctrl_c_ends_the_writing(run):
    def script(prompt, nth):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        stopped.wait(5)
        return answer(prompt)

    stopped = threading.Event()
    with serving(script) as server:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(lambda: writer(server.url, concurrency=1).write(PROMPTS, HOW))
        assert time.monotonic() - began < 4
        stopped.set()
    assert server.asked == {PROMPTS[0]: 1}


def test_a_run_whose_server_dies_asks_only_for_what_is_missing(tmp_path):
    """Five of twelve are answered; after the server is back, the other seven are asked for, and no more."""
    answered = []

    def script(prompt, nth):
        with server.lock:
            if len(answered) == 5:
                return HANG_UP
            answered.append(prompt)
        return answer(prompt)

    cache = PathCache(tmp_path / "p.sqlite")
    with serving(script) as server:
        port, ticks = server.server_port, []
        writes = CachedWriter(writer(server.url, concurrency=3), cache, lambda *at: ticks.append(at))
        with pytest.raises(RunError) as caught:
            writes.write(PROMPTS, HOW)
    assert ticks[-1] == ("write", 5, 12)
    assert f"5 of 12 texts are kept in {cache.path}" in str(caught.value)
    assert server.url in str(caught.value)
    assert "when the run goes on" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with serving(port=port) as again:
        found = CachedWriter(writer(again.url), cache).write(PROMPTS, HOW)
    assert texts(found) == [f"so {prompt}" for prompt in PROMPTS]
    assert sorted(again.asked) == sorted(set(PROMPTS) - set(answered))
    assert set(again.asked.values()) == {1}


def test_neither_prompts_nor_keys_are_logged(caplog, capfd, monkeypatch):
    monkeypatch.setenv("COTUNE_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    troubles = {0: (500, {"error": {"message": f"{KEY} asked: private words"}}), 1: HANG_UP}
    with serving(lambda prompt, nth: troubles.get(nth, answer(prompt))) as server:
        writes = writer(server.url, api_key_env="COTUNE_TEST_KEY")
        assert texts(writes.write(["private words"], HOW)) == ["so private words"]
    said = caplog.text + "".join(capfd.readouterr())
    assert KEY not in said
    assert "private" not in said


def test_a_key_where_its_name_belongs_is_not_shown():
    for name in (KEY, "gsk_abcdef0123", "hf_abcdef"):
        with pytest.raises(ConfigError, match="name of an environment variable") as caught:
            writer("http://localhost/v1", api_key_env=name)
        assert name not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"), [(None, "is not set"), ("", "is not set"), ("a\nb", "characters")]
)
def test_a_key_that_cannot_be_one(value, words, monkeypatch):
    if value is not None:
        monkeypatch.setenv("COTUNE_TEST_KEY", value)
    with pytest.raises(ConfigError, match=f"COTUNE_TEST_KEY.*{words}"):
        writer("http://localhost/v1", api_key_env="COTUNE_TEST_KEY")


@pytest.mark.parametrize(
    "url", ["http://", "https://me:secret@host/v1", "https://host/v1?key=secret", "http://host:port/v1"]
)
def test_an_address_that_cannot_be_one_or_holds_a_secret_is_not_shown(url):
    with pytest.raises(ConfigError, match="endpoint url: expected an address") as caught:
        writer(url)
    assert "secret" not in str(caught.value)


def test_another_address_or_model_is_another_writer():
    names = {writer(url, model=m).fingerprint for url in ("http://a/v1", "http://b/v1") for m in "xy"}
    assert len(names) == 4
    assert writer("http://a/v1/").fingerprint == writer("http://a/v1").fingerprint


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pip install 'cotune\[endpoint\]'"):
        writer("http://localhost/v1")
