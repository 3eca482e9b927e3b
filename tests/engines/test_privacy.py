import pytest

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
    require_allowed(endpoint("https://models.example:8443/v1"), task("private", *allowed))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://models.example/v1", ()),
        ("https://models.example:8443/v1", ("models.example:443",)),
        ("https://models.example.evil.example/v1", ("models.example",)),
        ("https://models.example@evil.example/v1", ("models.example",)),
        ("https://evil.example/models.example", ("models.example",)),
        ("models.example", ("models.example",)),
    ],
)
def test_a_private_task_goes_nowhere_else(url: str, allowed: tuple[str, ...]):
    with pytest.raises(PrivacyError, match="task 't' is private"):
        require_allowed(endpoint(url), task("private", *allowed))


def test_a_public_task_may_go_anywhere():
    require_allowed(endpoint("https://anywhere.example/v1"), task("public"))
