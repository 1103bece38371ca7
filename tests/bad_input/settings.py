"""Bad configurations and overrides.

A case is its name, the content of the file, the overrides, and the message. DEMO stands for configs/demo.yaml.
"""

DEMO = object()


def _laughs():
    """YAML of 300 bytes that stands for 9**9 values: nine lists, each with nine aliases of the list before."""
    names = zip("abcdefgh", "bcdefghi", strict=True)
    lists = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in names]
    return "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *lists])


_DEEP = "lists or sections are nested too deep"

CASES = [
    ("empty file", "", [], "{at} should hold settings by name (run, articles, policy, …), and holds empty"),
    (
        "a list",
        "- run: x",
        [],
        "{at} should hold settings by name (run, articles, policy, …), and holds [{'run': 'x'}]",
    ),
    ("a word", "hello", [], "{at} should hold settings by name (run, articles, policy, …), and holds 'hello'"),
    (
        "indented by tabs",
        "policy:\n\tmodel: x\n",
        [],
        "{at} cannot be read as YAML: line 2: found character '\\t' that cannot start any token (indent with spaces)",
    ),
    ("a name twice", "run: a\nrounds: 1\nrun: b\n", [], "{at} cannot be read as YAML: line 3: run occurs twice"),
    (
        "billion laughs",
        _laughs(),
        [],
        "{at} cannot be read as YAML: it holds more than 100,000 values: nested anchors, or data instead of settings",
    ),
    ("an anchor within itself", "run: &a [*a]", [], f"{{at}} cannot be read as YAML: its {_DEEP}"),
    ("nested deep", "run: " + "[" * 3000 + "]" * 3000, [], f"{{at}} cannot be read as YAML: its {_DEEP}"),
    ("UTF-16", "run: x".encode("utf-16"), [], "{at} is not UTF-8 text: save it as UTF-8"),
    ("Latin-1", "run: café".encode("latin-1"), [], "{at} is not UTF-8 text: save it as UTF-8"),
    (
        "a control character",
        "run: a\0b",
        [],
        "{at} cannot be read as YAML: unacceptable character #x0000: special characters are not allowed, position 6",
    ),
    (
        "a tag that would run code",
        "run: !!python/object/apply:os.system ['touch pwned']",
        [],
        "{at} cannot be read as YAML: line 1: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    ("an impossible date", "run: 2001-99-99", [], "{at} cannot be read as YAML: month must be in 1..12"),
    ("two documents", "run: a\n---\nrun: b", [], "{at} cannot be read as YAML: line 2: but found another document"),
    ("a name that is a list", "[a, b]: 1", [], "{at} cannot be read as YAML: line 1: found unhashable key"),
    (
        "a name that is a number",
        DEMO,
        ["hardware.servers={1: {base_url: http://x/v1}}"],
        "hardware.servers has the name 1",
    ),
    (
        "a date for text",
        DEMO,
        ["articles={path: 2024-01-01}"],
        "articles.path is 2024-01-01: it should be text; put it in quotes",
    ),
    ("nothing for text", DEMO, ["run="], "run is empty: it should be a path, a URI or a hub name"),
    ("a list for text", DEMO, ["articles={path: [a.jsonl]}"], "articles.path is ['a.jsonl']: it should be text"),
    ("a word for a section", DEMO, ["training=fast"], "training is 'fast': it should be a section of settings by name"),
    ("nothing for a section", DEMO, ["articles=null"], "articles is empty: it should be a section of settings by name"),
    ("a word for a list", DEMO, ["report_to=wandb"], "report_to is 'wandb': it should be a list, such as [a, b]"),
    ("yes for a number", DEMO, ["rounds=yes"], "rounds is true: it should not be true or false"),
    (
        "yes for a share",
        DEMO,
        ["articles.eval_fraction=on"],
        "articles.eval_fraction is true: it should not be true or false",
    ),
    ("a word for a number", DEMO, ["rounds=two"], "rounds is 'two': input should be a valid integer"),
    ("half a round", DEMO, ["rounds=2.5"], "rounds is 2.5: input should be a valid integer"),
    ("a negative", DEMO, ["training.beta=-0.1"], "training.beta is -0.1: input should be greater than 0"),
    ("infinite", DEMO, ["training.beta=.inf"], "training.beta is inf: input should be a finite number"),
    ("not a number", DEMO, ["training.beta=.nan"], "training.beta is nan: input should be a finite number"),
    (
        "beyond any number",
        DEMO,
        ["training.beta=1.0e999"],
        "training.beta is '1.0e999': input should be a finite number",
    ),
    ("5,000 digits", DEMO, ["rounds=" + "9" * 5000], "rounds: '9999"),
    ("misspelt", DEMO, ["training.bta=1"], "training has no 'bta' (did you mean beta?); it has loss_type,"),
    ("no equals sign", DEMO, ["rounds"], "'rounds' is not a setting: write NAME=VALUE, such as training.beta=0.05"),
    ("no name", DEMO, ["=3"], "'=3' is not a setting: write NAME=VALUE, such as training.beta=0.05"),
    ("an empty part", DEMO, ["training..beta=1"], "training has no ''; it has loss_type,"),
    (
        "an index",
        DEMO,
        ["training.loss_weights.0=1"],
        "training.loss_weights is {'0': 1}: it should be a list, such as",
    ),
    ("beyond a value", DEMO, ["rounds.x=1"], "rounds is a value (3), not a section"),
    (
        "a section of 5,000 parts",
        DEMO,
        [".".join(["a"] * 5000) + "=1"],
        "is not the name of a setting: write NAME=VALUE",
    ),
    (
        "an override of half a list",
        DEMO,
        ["rounds=["],
        "rounds: '[' is not a YAML value; quote it, as in rounds='\"…\"'",
    ),
    ("an override too deep", DEMO, ["rounds=" + "[" * 3000], "is not a YAML value; quote it"),
    (
        "an override that would run code",
        DEMO,
        ["articles={path: !!python/name:os.system}"],
        "is not a YAML value; quote it",
    ),
    (
        "a password in a URI",
        DEMO,
        ["run=s3://key:secret@bucket/run"],
        "run holds a user or a password: put credentials",
    ),
    (
        "a key in a URI",
        DEMO,
        ["articles.path=s3://b/x.jsonl?secret_key=abc"],
        "articles.path holds a key or a token: put",
    ),
    ("a NUL in a path", DEMO, ['run="a\\0b"'], "run is 'a\\x00b': it should have no control characters"),
    ("a blank path", DEMO, ["run=' '"], "run is ' ': it should have no control characters, and no spaces at its ends"),
    (
        "an escape sequence in a path",
        DEMO,
        ['policy.model="\\e[31mred"'],
        "policy.model is '\\x1b[31mred': it should have",
    ),
    (
        "a bad address",
        DEMO,
        ["articles.path='s3://[x'"],
        "articles.path is 's3://[x': it should be a path, a URI or a hub name",
    ),
]
