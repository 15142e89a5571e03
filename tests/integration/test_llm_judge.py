"""`gvc eval --judge` against a server of the test's own, over real HTTP with the real client."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from grouped_lm.evaluate.llm_judge import Answers, Story, make_beginnings, parse_grades

pytest.importorskip("openai")
KEY = "sk-test-0123456789abcdef"
GOOD = '{"grammar": 7, "creativity": 4, "consistency": 6.5, "plot": 5}'


class Endpoint(ThreadingHTTPServer):
    """Answers chat completions by a function of how many have been asked: a text, or a status with one."""

    def __init__(self, answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.keys = answer, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["messages"][0]["content"])
        self.server.keys.add(self.headers["Authorization"])
        status, text = self.server.answer(len(self.server.asked))
        if status == 200:
            message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            text = json.dumps(reply | {"choices": [message], "usage": usage})
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def endpoint(answer):
    server = Endpoint(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(gvc, tiny):
    gvc("train", *tiny, "train.max_steps=2", "hydra.run.dir=run")
    return Path("run")


def judge(gvc, url, *more):
    words = ["run", "--judge", "--samples", "0", f"judge.base_url={url}", "judge.model=toy", "judge.num_stories=4"]
    return gvc("eval", *words, "judge.max_new_tokens=5", "judge.retries=2", *more)


def test_grades_costs_and_tables(gvc, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(lambda n: (200, f"Here you are:\n{GOOD}" if n != 2 else GOOD.replace("7", "9"))) as server:
        prices = ["judge.usd_per_million_prompt_tokens=1", "judge.usd_per_million_completion_tokens=10"]
        ended = judge(gvc, server.url, *prices)
    assert ended.code == 0, ended.err
    figures = json.loads((run / "eval.json").read_text())
    assert figures["judge/grammar"] == 7.5
    assert figures["judge/grammar_half_width"] == pytest.approx(1.96 * 1.0 / 2)
    assert figures["judge/consistency"] == 6.5
    assert figures["judge/consistency_half_width"] == 0
    assert (figures["judge/prompt_tokens"], figures["judge/completion_tokens"]) == (400, 80)
    assert figures["judge/cost_usd"] == pytest.approx(400e-6 + 800e-6)
    assert figures["val/loss"] > 0
    assert "grammar, 1 to 10, by toy" in ended.out
    assert "7.50 ± 0.98" in ended.out
    stories = json.loads((run / "judge" / "stories.json").read_text())["stories"]
    assert len(set(server.asked)) == 4
    for story, question in zip(stories, server.asked, strict=True):
        assert f"{story['beginning']}***{story['completion']}" in question
    assert server.keys == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in written)


def test_an_endpoint_that_fails_loses_nothing_and_the_same_command_goes_on(gvc, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(lambda n: (200, GOOD) if n <= 2 else (401, f'{{"error": {{"message": "no key {KEY}"}}}}')) as server:
        ended = judge(gvc, server.url)
    assert ended.code == 1
    assert ended.err.strip().splitlines()[-1].startswith("gvc: error: toy at http://127.0.0.1")
    assert "401" in ended.err
    assert KEY not in ended.err
    assert "Traceback" not in ended.err
    stories = (run / "judge" / "stories.json").read_bytes()
    with endpoint(lambda n: (200, GOOD)) as server:
        ended = judge(gvc, server.url)
    assert ended.code == 0, ended.err
    assert len(server.asked) == 2
    assert (run / "judge" / "stories.json").read_bytes() == stories
    assert json.loads((run / "eval.json").read_text())["judge/stories"] == 4


@pytest.mark.parametrize(
    "garbage", ["", "seven of ten", '{"grammar": 11, "creativity": 1, "consistency": 1, "plot": 1}']
)
def test_garbage_is_asked_again_and_then_said(gvc, run, garbage):
    with endpoint(lambda n: (200, garbage if n <= 2 else GOOD)) as server:
        assert judge(gvc, server.url).code == 0
    assert len(server.asked) == 6
    assert json.loads((run / "eval.json").read_text())["judge/prompt_tokens"] == 600
    with endpoint(lambda n: (200, garbage)) as server:
        ended = judge(gvc, server.url, "judge.model=other")
    assert ended.code == 1
    assert "answered 3 times without grades" in ended.err.splitlines()[-1]
    assert len(server.asked) == 3


def test_busy_broken_and_silent_endpoints(gvc, run):
    with endpoint(lambda n: (503, "{}") if n in (1, 2) else (200, "not json at all" if n == 3 else GOOD)) as server:
        ended = judge(gvc, server.url)
    assert ended.code == 0, ended.err
    with endpoint(lambda n: (404, "<html>no such model</html>")) as server:
        assert judge(gvc, server.url, "judge.model=gone").code == 1
    ended = judge(gvc, "http://127.0.0.1:9/v1", "judge.model=nobody", "judge.retries=0")
    assert ended.code == 1
    assert "gave no answer" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert judge(gvc, "ftp://nowhere").code == 2


def test_a_torn_last_answer_is_asked_for_again(tmp_path):
    story, other = Story("a", "b"), Story("a", "c")
    grades = json.loads(GOOD)
    file = tmp_path / "judge" / "answers.jsonl"
    answers = Answers(file, "toy")
    answers.add(story, grades, GOOD, {"prompt_tokens": 1})
    file.write_bytes(file.read_bytes() + b'{"judge": "toy", "sto')
    answers = Answers(file, "toy")
    assert answers.grades(story) == grades
    assert answers.grades(other) is None
    answers.add(other, grades, GOOD, {"prompt_tokens": 1})
    assert Answers(file, "toy").grades(other) == grades
    assert Answers(file, "toy").tokens([story, other], "prompt_tokens") == 2
    assert Answers(file, "somebody else").grades(story) is None


def test_beginnings_are_beginnings_and_no_training_text():
    from grouped_lm.data.sources.tinytales import generate_stories

    beginnings = make_beginnings(20)
    assert len(set(beginnings)) == 20
    assert all(8 <= len(b.split()) <= 120 and b == b.strip() for b in beginnings)
    seen = "\n".join(generate_stories(200, 0, "train"))
    assert not any(b in seen for b in beginnings)


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (GOOD, True),
        (f"```json\n{GOOD}\n```", True),
        (GOOD.replace("5}", "true}"), False),
        (GOOD.replace("5}", "NaN}"), False),
        (GOOD.replace("5}", '"5"}'), False),
        ('{"grammar": 7}', False),
        (f'{{"grammar": 7}} {GOOD}', True),
        ("[]", False),
    ],
)
def test_grades_are_numbers_in_range(answer, good):
    assert (parse_grades(answer) is not None) is good
