"""Makes hostile bytes: whole ones with flipped bits, and JSON or YAML grown by a grammar."""

import json
import random

ATOMS = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**70,
    1e308,
    float("inf"),
    float("nan"),
    "",
    ".",
    "..",
    "../../../../escaped",
    "/escaped",
    "a//b",
    "a/../../b",
    "a\x00b",
    "\x1b[2J\x07",
    "\ud800",
    "\u202e",
    "x" * 5000,
    "os:system",
    "torch.hub:_load_local",
    "builtins:exec",
    "stages.catalog:CATALOG",
    "tests.toy.stages:Number",
    "!!python/object/apply:os.system ['touch escaped']",
    "${HOME}",
    "{}",
    "[]",
    "0" * 64,
    "9" * 5000,
)
KEYS = (
    "a",
    "b",
    "total",
    "resources",
    "seed",
    "extends",
    "<<",
    "? x",
    "a.value",
    "number",
    "&x a",
    "!!int a",
    "1",
    "~",
    "'",
    '"',
    "[",
    "{",
    "- -",
    "%TAG",
    "---",
    "...",
)
LEAVES = (
    "&a [*a]",
    "*a",
    "*b",
    "!!python/name:os.system",
    "!!binary aGk=",
    "!x y",
    "|",
    ">",
    "0x1f",
    "1_000",
    "010",
    "1:04",
    "yes",
    "1e3",
    ".inf",
    ".nan",
    "2001-01-01",
    "~",
    "{a: {b: c}}",
    "[1, [2, [3]]]",
    "plain.yaml",
    "../../x.yaml",
    "\t",
    "#",
)


def atom(draws: random.Random):
    return draws.choice(ATOMS)


def value(draws: random.Random, depth: int = 3):
    """A JSON value of any shape."""
    kind = draws.random()
    if depth == 0 or kind < 0.6:
        return atom(draws)
    count = draws.randrange(4)
    if kind < 0.8:
        return [value(draws, depth - 1) for _ in range(count)]
    return {str(atom(draws)): value(draws, depth - 1) for _ in range(count)}


def changed(draws: random.Random, tree):
    """A copy of JSON data with a hostile value at one place, a key lost, or one too many."""
    if isinstance(tree, dict) and tree and draws.random() < 0.85:
        name = draws.choice(sorted(tree))
        how = draws.random()
        if how < 0.1:
            return {k: v for k, v in tree.items() if k != name}
        if how < 0.2:
            return tree | {str(atom(draws)): tree[name]}
        return tree | {name: changed(draws, tree[name])}
    if isinstance(tree, list) and tree and draws.random() < 0.7:
        index = draws.randrange(len(tree))
        return [*tree[:index], changed(draws, tree[index]), *tree[index + 1 :]]
    return value(draws)


def flipped(draws: random.Random, data: bytes) -> bytes:
    """Bytes with a bit flipped, a part cut out, doubled, or replaced by noise."""
    made = bytearray(data)
    for _ in range(draws.choice((1, 1, 1, 2, 8))):
        if not made:
            break
        at, how = draws.randrange(len(made)), draws.random()
        end = min(len(made), at + draws.choice((1, 2, 7, 64)))
        if how < 0.6:
            made[at] ^= 1 << draws.randrange(8)
        elif how < 0.7:
            del made[at:end]
        elif how < 0.8:
            made[at:at] = made[at:end]
        elif how < 0.9:
            made[at:end] = draws.randbytes(end - at)
        else:
            del made[at:]
    return bytes(made)


def as_json(tree) -> bytes:
    return json.dumps(tree).encode()


def yaml_text(draws: random.Random, depth: int = 3, indent: int = 0) -> str:
    """Text that is YAML, or nearly."""
    pad = "  " * indent
    lines = []
    for _ in range(draws.randrange(1, 4)):
        key = draws.choice(KEYS)
        if depth and draws.random() < 0.4:
            lines.append(f"{pad}{key}:\n{yaml_text(draws, depth - 1, indent + 1)}")
        else:
            leaf = draws.choice((*LEAVES, str(atom(draws))))
            lines.append(f"{pad}{key}: {leaf}")
    return "\n".join(lines)
