"""The page of the server: what is in it, and how it talks in a browser."""

import base64
import hashlib
import re

import pytest

from gemcut.runtime.server.app import Access
from tests.browser import PROGRAM, Browser
from tests.serving import parroting, wait

in_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")


def test_the_page_holds_all_it_needs(model):
    """Nothing from elsewhere in it; its policy lets its own script and style run, and no other."""
    with parroting(model) as server:
        answered = server.web.get("/")
    policy = answered.headers["content-security-policy"]

    assert [] == re.findall(r'(?:src|href)=["\'](?!data:)', answered.text)
    assert {"default-src 'none'", "connect-src 'self'"} <= set(policy.split("; "))
    for kind in ("script", "style"):
        content = re.findall(rf"<{kind}>(.*?)</{kind}>", answered.text, re.DOTALL)
        digest = hashlib.sha256(content[0].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


@in_browser
def test_the_page_talks(model, tmp_path):
    """In a browser: a message is answered, thoughts are folded away, and nothing else is loaded."""
    text = "<|channel>thought\nwell<channel|>it **is** <b>so</b>"
    with parroting(model, text) as server, Browser(tmp_path) as browser:
        browser.open(server.url)
        browser.wait("document.title === 'parrot'")
        browser.run("$('prompt').value = 'Is it?'; submit()")
        browser.wait("document.querySelector('.again')")
        shown = browser.run("document.querySelector('.assistant .text').innerHTML")
        assert "<p>it <strong>is</strong> &lt;b&gt;so&lt;/b&gt;</p>" == shown
        assert "well" == browser.run("document.querySelector('details div').textContent")
        assert not browser.run("document.querySelector('details').open")
        asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
        assert all(each.startswith((server.url, "data:")) for each in asked)
        assert [] == browser.of("Runtime.exceptionThrown")
        errors = [each["entry"] for each in browser.of("Log.entryAdded")]
        assert [] == [each for each in errors if each["level"] == "error"]


@in_browser
def test_the_page_stops_an_answer(model, tmp_path):
    """The button ends the job on the server; what was said stays."""
    with parroting(model, "begun", finish=None) as server, Browser(tmp_path) as browser:
        browser.open(server.url)
        browser.wait("document.title === 'parrot'")
        browser.run("$('prompt').value = 'Is it?'; submit()")
        browser.wait("document.querySelector('.assistant .text').textContent === 'begun'")
        browser.run("$('stop').click()")
        wait(lambda: server.service._scheduler.cancelled == 1)
        browser.wait("document.querySelector('.foot').textContent.includes('stopped')")
        assert 2 == browser.run("messages.length")


@in_browser
def test_the_page_asks_for_a_key_and_keeps_the_conversation(model, tmp_path):
    """Where the server wants a key there is a field for it; a reload loses nothing."""
    with (
        parroting(model, "fine", access=Access(keys=("open",))) as server,
        Browser(tmp_path) as browser,
    ):
        browser.open(server.url)
        browser.wait("!$('settings').hidden && !$('secret').hidden")
        browser.run("$('key').value = 'open'; $('key').onchange()")
        browser.wait("document.title === 'parrot'")
        browser.run("$('prompt').value = 'Is it?'; submit()")
        browser.wait("document.querySelector('.again')")
        browser.open(f"{server.url}/?again")
        browser.wait("document.title === 'parrot'")
        assert "Is it?" == browser.run("document.querySelector('.user .text').textContent")
        assert "fine" == browser.run("document.querySelector('.assistant .text').textContent")
