"""What the Dockerfile and its locks say."""

import re
from functools import cache

from tests.k8s.manifests import K8S

IMAGES = K8S / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()


def instructions(word: str, stage: str | None = None) -> list[str]:
    """What follows a word of the Dockerfile, one entry an instruction; of one stage, by its name, or of all."""
    found: list[str] = []
    current = ""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    for line in joined.splitlines():
        first, _, rest = line.strip().partition(" ")
        if first == "FROM":
            current = rest.partition(" AS ")[2] or "image"
        if first == word and stage in (None, current):
            found.append(rest.strip())
    return found


def environment_of(stage: str) -> dict[str, str]:
    """Variables that a stage sets."""
    words = [word for line in instructions("ENV", stage) for word in line.split()]
    return dict(word.split("=", 1) for word in words)


ENVIRONMENT = environment_of("image")


@cache
def locked(variant: str) -> dict[str, str]:
    """Package to version, without the local part, of a lock."""
    text = (IMAGES / f"lock-{variant}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s+]+)", text, re.MULTILINE))
