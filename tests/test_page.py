"""The playground: static, closed to foreign content, on the public API only; and in a browser."""

import json
import re
import shutil
from base64 import b64encode
from importlib.resources import files

import httpx
import pytest
import servers

from seriatim.serve import mock
from seriatim.serve.app import ROUTES
from seriatim.serve.page import FILES
from seriatim.serve.served import Served
from seriatim.serve.shared import Shared

STATIC = files("seriatim.serve").joinpath("static")
OBJECTS = {"music": "music:form=chorale", "notes": "music", "protein": "protein",
           "image": "image:size=6,mode=grey,levels=4"}  # fmt: skip
SEED = "41"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = servers.shared(servers.load())
    for name, codec in OBJECTS.items():
        model = servers.of_codec(tmp_path_factory.mktemp(name), codec)
        made.models.add(Served(name, model, made.limits))
    yield made
    made.stop()


@pytest.fixture
def locked():
    made = Shared(keys=("secret",))
    silent, script = mock.model("mock:echo")
    made.models.add(Served("mock:echo", silent, made.limits, script=script))
    made.models.loading = False
    yield made
    made.stop()


# ---- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_a_file_of_the_page_needs_no_key_and_may_load_nothing_from_elsewhere(locked, path):
    said = servers.ask(locked, path)
    assert said.status_code == 200
    assert said.headers["content-type"] == f"{FILES[path][1]}; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in said.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert said.headers["x-content-type-options"] == "nosniff"
    assert said.content == STATIC.joinpath(FILES[path][0]).read_bytes()


@pytest.mark.parametrize("path", FILES)
def test_whoever_has_a_file_is_not_sent_it_again(locked, path):
    said = servers.ask(locked, path)
    assert said.headers["cache-control"] == "no-cache"
    again = servers.ask(locked, path, headers={"if-none-match": f'"x", W/{said.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == said.headers["etag"]
    assert servers.ask(locked, path, headers={"if-none-match": '"x"'}).status_code == 200


@pytest.mark.parametrize("path", FILES)
def test_head_is_get_without_the_body(locked, path):
    head, said = servers.ask(locked, path, method="HEAD"), servers.ask(locked, path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == said.headers["etag"]
    assert servers.ask(locked, path, {}).status_code == 405


def test_what_the_page_asks_is_the_public_api():
    script = "".join(STATIC.joinpath(name).read_text() for name in ("page.js", "objects.js"))
    asked = set(re.findall(r'"(v1/[\w/]+)"', script))
    assert asked == {"v1/models", "v1/completions", "v1/chat/completions"}
    assert {f"/{path}" for path in asked} <= {route.path for route in ROUTES}
    assert script.count("fetch(") == 1


def test_every_file_of_the_page_is_packaged_and_served():
    assert {file.name for file in STATIC.iterdir()} == {name for name, _ in FILES.values()}


def test_the_page_is_text_nodes_and_names_no_other_server():
    every = "".join(STATIC.joinpath(name).read_text() for name, _ in FILES.values())
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "onclick",
    ):
        assert word not in every
    assert re.findall(r"https?://[^'\" ]+", every) == ["http://www.w3.org/2000/svg"]  # a name
    named = re.findall(r'(?:src|href)="([\w.]+)"', STATIC.joinpath("index.html").read_text())
    assert {f"/{name}" for name in named} == {"/page.css", "/page.js"}


# ---- what it asks for ---------------------------------------------------------------------------


def asked(model="tiny", **body):
    return {"model": model, "prompt": "", "max_tokens": 8, "seed": 5, **body}


def test_a_trace_looks_at_every_id(server):
    body = asked(prompt="ab", logprobs=1, trace=3, ignore_end=True)
    (choice,) = servers.ask(server, "/v1/completions", body).json()["choices"]
    trace = choice["trace"]
    assert [row["id"] for row in trace] == choice["token_ids"]
    assert [row["logprob"] for row in trace] == choice["logprobs"]["token_logprobs"]
    assert all(len(row["top"]) == 3 for row in trace)
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"])
    spelt = b"".join(bytes(row["bytes"] or ()) for row in trace)
    assert spelt.decode(errors="replace") == choice["text"]
    assert all(row["top"][0]["logprob"] >= row["top"][1]["logprob"] for row in trace)
    body = {name: value for name, value in body.items() if name not in ("logprobs", "trace")}
    (plain,) = servers.ask(server, "/v1/completions", body).json()["choices"]
    assert plain["token_ids"] == choice["token_ids"]
    assert "trace" not in plain


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_streamed_trace_adds_up_to_the_whole_one(server, path):
    chat = "chat" in path
    how = {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "Hi"}
    body = {"model": "tiny", "max_tokens": 20, "seed": 2, "trace": 2, "ignore_end": True, **how}
    whole = servers.ask(server, path, body).json()["choices"][0]["trace"]
    chunks = servers.events(servers.ask(server, path, {**body, "stream": True}))
    rows = [row for c in chunks for choice in c["choices"] for row in choice.get("trace", ())]
    assert [row | {"accepted": None} for row in rows] == [r | {"accepted": None} for r in whole]
    assert len(rows) == 20


def test_a_trace_marks_as_many_drafts_as_held(server):
    body = asked(prompt="abcabcabcabc", temperature=0, max_tokens=64, trace=0, speculate="ngram")
    said = servers.ask(server, "/v1/completions", body | {"ignore_end": True}).json()
    marked = sum(row["accepted"] for row in said["choices"][0]["trace"])
    held = said["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
    assert marked == held > 0


def test_a_result_is_rendered_in_the_types_that_are_asked_for(server):
    body = asked("image", max_tokens=36, render=["image/png", "audio/midi"])
    (choice,) = servers.ask(server, "/v1/completions", body).json()["choices"]
    assert choice["rendered"]["image/png"].startswith("iVBORw0KGgo")
    assert choice["rendered"]["audio/midi"] is None
    chunks = servers.events(servers.ask(server, "/v1/completions", body | {"stream": True}))
    assert [c["rendered"] for chunk in chunks for c in chunk["choices"] if "rendered" in c] == [
        choice["rendered"]
    ]


@pytest.mark.parametrize(
    "field, value", [("trace", 21), ("trace", True), ("render", "image/png"), ("render", ["a"] * 9)]
)
def test_what_cannot_be_looked_at_is_refused_by_name(server, field, value):
    said = servers.ask(server, "/v1/completions", asked(**{field: value}))
    assert said.status_code == 400
    assert said.json()["error"]["param"] == field


def test_the_list_of_models_says_what_each_can_do(server):
    data = {m["id"]: m for m in servers.ask(server, "/v1/models").json()["data"]}
    assert data["tiny"]["chats"] is True
    assert data["tiny"]["infills"] is False
    assert data["music"] | {"unit": "frame"} == data["music"]
    assert data["music"]["codec_options"]["form"] == "chorale"
    assert data["image"]["codec_options"]["levels"] == 4
    assert data["image"]["chats"] is False


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


def test_a_prompt_may_be_a_file(server, tmp_path):
    codec = server.models.get("image").model.codec
    codec.write(codec.examples()[0], path := tmp_path / "a.png")
    body = asked("image", return_token_ids=True)
    body["prompt"] = {"base64": encoded(path.read_bytes()), "name": "A picture.PNG"}
    body["max_tokens"] = 1
    (choice,) = servers.ask(server, "/v1/completions", body).json()["choices"]
    assert choice["prompt_token_ids"] == [*codec.start, *codec.encode(codec.read(path))]


@pytest.mark.parametrize(
    "prompt",
    [{}, {"base64": "AAAA"}, {"base64": "!", "name": "a.png"}, {"base64": "", "name": "a.png"},
     {"base64": "AAAA", "name": "../../a"}, {"base64": "AAAA", "name": "a.png", "more": 1},
     {"base64": "AAAA", "name": "a.mid"}, {"base64": encoded(b"GIF89a"), "name": "a.png"}],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_without_a_path(server, prompt):
    said = servers.ask(server, "/v1/completions", asked("image", prompt=prompt))
    assert said.status_code == 400
    assert "/tmp" not in said.text
    assert "prompt" in said.json()["error"]["message"]


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """A browser, or why there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(server):
    with servers.running(server) as (address, _):
        yield address


@pytest.fixture
def open_page(chromium):
    """Opens pages; none of them may have said anything on its console, unless a test expects it."""
    contexts, said = [], []

    def opened(address, model=None, **how):
        context = chromium.new_context(**how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:")) else said.append(r.url),
        )
        page.goto(address)
        if model is not None:
            page.wait_for_selector("#model option", state="attached")
            page.select_option("#model", model)
        return page

    opened.said = said
    yield opened
    for context in contexts:
        context.close()
    assert not said


def write(page, prompt, most=24, seed=SEED):
    if not page.locator("#max_tokens").is_visible():
        page.click("#settings summary")
    page.fill("#max_tokens", str(most))
    page.fill("#seed", seed)
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")


def told(page, words):
    """Wait until its status says so. The policy of the page lets nobody evaluate anything there."""
    page.locator("#status").filter(has_text=words).wait_for()


def finished(page):
    """Its status, once it has one."""
    told(page, re.compile(r"ids? ·"))
    return page.inner_text("#status")


def test_what_is_typed_comes_back_id_by_id(open_page, address):
    page = open_page(address, "mock:echo")
    text = "Grüße <b>&amp;</b>\n<img src=x onerror=alert(1)> 雪"
    page.fill("#prompt", text)
    page.click("#go")
    finished(page)
    assert page.locator("#ids").text_content() == text
    assert page.locator("#ids > *").count() == len(text.encode())
    assert page.locator("#ids b, #ids img").count() == 0


def test_it_shows_the_ids_that_the_api_gives_and_their_alternatives(open_page, address):
    page = open_page(address, "tiny")
    write(page, "Once")
    finished(page)
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 24, "seed": int(SEED), "trace": 6}
    trace = httpx.post(f"{address}/v1/completions", json=body).json()["choices"][0]["trace"]
    ids = page.locator("#ids .id")
    assert ids.count() == len(trace)
    ids.nth(3).hover()
    assert page.inner_text("#look p") == f"id {trace[3]['id']}"
    assert page.locator("#look .row").count() in (6, 7)
    page.focus("#ids")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#look p") == f"id {trace[1]['id']}"
    page.keyboard.press("Escape")
    assert page.locator("#look").is_hidden()


def test_the_same_seed_gives_the_same_ids_and_retry_draws_another(open_page, address):
    page = open_page(address, "tiny")
    write(page, "Once", seed="")
    finished(page)
    first, seed = page.locator("#ids").text_content(), page.inner_text("#used")
    page.click("#retry")
    finished(page)
    assert page.inner_text("#used") != seed
    assert page.locator("#ids").text_content() != first
    page.fill("#seed", seed)
    page.click("#retry")
    finished(page)
    assert page.inner_text("#used") == seed
    assert page.locator("#ids").text_content() == first
    page.click("#reuse")
    assert page.input_value("#seed") == seed


def test_it_streams_and_stops(open_page, address, server):
    page = open_page(address, "tiny")
    with servers.slow(server.models.get("tiny").model, 0.03):
        write(page, "Once", most=200)
        page.locator("#ids .id").nth(2).wait_for(state="attached")
        assert page.locator("body.running").count() == 1
        page.click("#stop")
        told(page, "Stopped after")
    assert 2 < page.locator("#ids .id").count() < 200
    assert page.locator("#go").is_enabled()
    engine = server.models.get("tiny").engine
    servers.until(lambda: engine.pool.limit == engine.pool.available)


def test_drafts_that_held_are_marked(open_page, address):
    page = open_page(address, "tiny")
    page.locator("#temperature").fill("0")
    page.select_option("#speculate", "ngram")
    write(page, "abcabcabcabc", most=100)
    held = re.search(r"(\d+) of \d+ drafts held", finished(page))
    assert held
    assert page.locator("#ids .accepted").count() == int(held[1]) > 0


def test_a_chat_goes_on(open_page, address):
    page = open_page(address, "mock:script")
    page.check("input[value=chat]", force=True)
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator("#ids").text_content() == mock.REPLIES[0]
    page.fill("#prompt", "And then?")
    page.click("#go")
    finished(page)
    assert page.locator("#ids").text_content() == mock.REPLIES[1]
    roles = page.locator("#talk p b").all_inner_texts()
    assert roles == ["user", "assistant", "user"]


def test_another_model_ends_what_was_under_way(open_page, address, server):
    page = open_page(address, "tiny")
    page.check("input[value=chat]", force=True)
    with servers.slow(server.models.get("tiny").model, 0.03):
        write(page, "Once", most=200)
        page.locator("#ids .id").nth(2).wait_for(state="attached")
        page.select_option("#model", "mock:echo")
        engine = server.models.get("tiny").engine
        servers.until(lambda: engine.pool.limit == engine.pool.available)
    page.locator("body:not(.running)").wait_for()
    assert page.locator("#ids > *").count() == page.locator("#talk > *").count() == 0
    assert page.locator("#retry").is_disabled()
    page.fill("#prompt", "Hi")
    page.click("#go")
    finished(page)
    assert page.locator("#talk p b").all_inner_texts() == ["user"]


@pytest.mark.parametrize("model", ["music", "notes"])
def test_music_is_a_roll_that_plays(open_page, address, model):
    page = open_page(address, model)
    write(page, "", most=200)
    finished(page)
    assert re.fullmatch(
        r"Piano roll of [1-9]\d* notes", page.get_attribute("#object canvas", "aria-label")
    )
    assert page.get_attribute("#object a", "href").startswith("data:audio/midi;base64,TVRoZA")
    page.click("text=Play")
    page.wait_for_selector("text=Stop playing")
    page.click("text=Stop playing")
    assert page.inner_text("#object .play") == "Play"


def test_residues_have_the_colours_of_their_classes(open_page, address):
    page = open_page(address, "protein")
    write(page, "MKV", most=40)
    finished(page)
    said = page.locator("#ids .residue").all_inner_texts()
    assert said
    assert page.locator("#ids .positive").all_inner_texts() == [s for s in said if s in "KR"]


def test_an_image_is_painted_as_the_codec_renders_it(open_page, address, server):
    page = open_page(address, "image")
    write(page, "", most=36)
    finished(page)
    painted = page.evaluate(
        """() => { const c = document.querySelector("#object canvas");
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data] }"""
    )
    body = asked("image", max_tokens=36, seed=int(SEED))
    (choice,) = httpx.post(f"{address}/v1/completions", json=body).json()["choices"]
    image = server.models.get("image").model.codec.decode(choice["token_ids"])
    assert painted[::4] == list(image.tobytes())


def test_a_file_is_a_prompt(open_page, address, server, tmp_path):
    codec = server.models.get("notes").model.codec
    codec.write(codec.examples()[1], path := tmp_path / "tune.mid")
    page = open_page(address, "notes")
    page.set_input_files("#file", path)
    page.locator("#opened").filter(has_text="tune.mid").wait_for()
    with page.expect_request("**/v1/completions") as sent:
        page.click("#go")
    finished(page)
    assert sent.value.post_data_json["prompt"] == {
        "base64": encoded(path.read_bytes()), "name": "tune.mid"
    }  # fmt: skip


def test_an_error_is_said_in_words(open_page, address):
    page = open_page(address, "protein")
    page.fill("#prompt", "not a protein 123")
    page.click("#go")
    page.wait_for_selector("#wrong:not([hidden])")
    assert page.inner_text("#wrong")
    assert page.locator("#go").is_enabled()
    assert all("400" in text for text in open_page.said)  # the browser's own line
    open_page.said.clear()


def test_a_key_is_asked_for_and_kept_nowhere(open_page, locked):
    with servers.running(locked) as (address, _):
        page = open_page(address)
        page.fill("#key", "secret")
        page.click("text=Unlock")
        page.wait_for_selector("#locked", state="hidden")
        page.fill("#prompt", "open")
        page.click("#go")
        finished(page)
        assert page.locator("#ids").text_content() == "open"
        kept = page.evaluate(
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        )
        assert json.loads(kept) == [{}, {}, ""]
        page.close()
    assert all("401" in text for text in open_page.said)
    open_page.said.clear()


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_is_wider_than_the_window(open_page, address, width):
    page = open_page(address, "tiny", viewport={"width": width, "height": 700}, has_touch=True)
    write(page, "x" * 190, most=60)
    finished(page)
    page.locator("#ids .id").nth(5).tap()
    assert page.locator("#look").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
