import pytest
from pydantic import ValidationError

from cluster.recipe_mistakes import describe
from generation.config import AnswerConfig, TaskConfig
from generation.engines.config import HttpEngine
from generation.engines.privacy import require_allowed
from generation.errors import PrivacyError


def task(privacy: str, *allowed: str) -> TaskConfig:
    answer = AnswerConfig(kind="exact")
    return TaskConfig(name="t", description="d", answer=answer, seeds="s", privacy=privacy, allowed_endpoints=allowed)


def endpoint(url: str) -> HttpEngine:
    return HttpEngine(kind="http", url=url, model="m")


@pytest.mark.parametrize("allowed", [("models.example",), ("MODELS.example:8443",), ("other", "models.example")])
def test_a_private_task_may_go_to_hosts_on_its_list(allowed: tuple[str, ...]):
    require_allowed("https://models.example:8443/v1", task("private", *allowed))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://models.example/v1", ()),
        ("https://models.example:8443/v1", ("models.example:443",)),
        ("https://models.example.evil.example/v1", ("models.example",)),
        ("https://evil.example/models.example", ("models.example",)),
        ("models.example", ("models.example",)),
    ],
)
def test_a_private_task_goes_nowhere_else(url: str, allowed: tuple[str, ...]):
    with pytest.raises(PrivacyError, match="task 't' is private"):
        require_allowed(url, task("private", *allowed))


@pytest.mark.parametrize("url", ["https://user:hush@models.example/v1", "https://models.example/v1?key=hush"])
def test_an_url_that_may_hold_a_secret_is_refused_without_showing_it(url: str):
    with pytest.raises(ValidationError, match="api_key_env") as caught:
        endpoint(url)
    (mistake,) = describe(caught.value, HttpEngine, {"kind": "http", "url": url, "model": "m"})
    assert "hush" not in mistake


def test_a_public_task_may_go_anywhere():
    require_allowed("https://anywhere.example/v1", task("public"))
