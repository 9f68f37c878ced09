"""The harness's three kinds of request, against numbers taken from the model directly."""

import functools
import json
import math
import string

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.configs import tiny
from experiments.evaluate_config import EvaluateConfig, LmEvalConfig
from multiscreen_jax import evaluation, generate
from multiscreen_jax.data import DataConfig, open_pipeline, open_tokenizer
from multiscreen_jax.data.tokenizers import CharacterTokenizer
from multiscreen_jax.models import MultiscreenConfig, TransformerConfig
from multiscreen_jax.models.registry import ARCHITECTURES, build
from multiscreen_jax.train import override, train
from tests.data import tokenizer_files
from tests.marks import slow_unless
from tests.models import linear_family

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

LETTERS = CharacterTokenizer(string.ascii_letters + " .,:!?01")  # 60, and the end
SHAPE = {"vocab_size": 61, "model_dim": 16, "num_layers": 2, "num_heads": 2, "precision": "highest"}
CONFIGS = {
    **{each.name: each.config(**each.contract.fields) for each in ARCHITECTURES},
    **linear_family.CONFIGS,
    "multiscreen": MultiscreenConfig(**SHAPE, key_dim=4, value_dim=6, window_threshold=9.0),
    "transformer": TransformerConfig(**SHAPE),
}
FAST = ("multiscreen", "transformer")
PAIRS = [("We the", " people of"), ("", "When in"), ("A", "b"), ("all men are created ", "equal")]


@functools.cache
def small(name):
    """(model, noisy parameters): at the initial ones every token is about equally likely."""
    model = build(CONFIGS[name])
    if name in linear_family.CONFIGS:
        return model, linear_family.params_of(name)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    rng = np.random.default_rng(2)
    return model, jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), params)


def adaptor_of(name, **settings):
    return evaluation.lm_eval.Adaptor(*small(name), LETTERS, **{"max_length": 64, **settings})


def requests(kind, arguments):
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def log_probs(model, params, tokens):
    """[T, O] in float64 of one row alone."""
    row = np.full((1, 40), 7, np.int32)  # what comes after it changes nothing; one compilation
    row[0, : len(tokens)] = tokens
    logits = np.asarray(_logits(model, params, row)[0, : len(tokens)], np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens):
    return model.apply({"params": params}, tokens).logits


def direct(model, params, tokens, count):
    """(log p of the last `count` tokens, whether each of them is the likeliest)."""
    table = log_probs(model, params, tokens[:-1])[-count:]
    last = np.asarray(tokens[-count:])
    return table[np.arange(count), last].sum(), bool((table.argmax(-1) == last).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_unless(FAST[:1], CONFIGS, exhaustive=CONFIGS.keys() - {"transformer"})
)
def test_loglikelihoods_are_the_models_own(name):
    model, params = small(name)
    adaptor = adaptor_of(name, batch_size=2)
    context = "the greedy one"
    prompt = LETTERS.encode(context)
    likely = LETTERS.decode(generate(model, params, prompt, 3, vocab_limit=60))
    pairs = [*PAIRS, (context, likely), (context, likely[:2] + ("a" if likely[2] != "a" else "b"))]
    found = adaptor.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    for (before, after), (total, greedy) in zip(pairs, found, strict=True):
        tokens = [*(LETTERS.encode(before) if before else [LETTERS.eos_id]), *LETTERS.encode(after)]
        # Space at the end of a context belongs to the continuation, for the harness.
        count = len(after) + len(before) - len(before.rstrip())
        want, likeliest = direct(model, params, tokens, count)
        assert total == pytest.approx(want, abs=2e-4), (before, after)
        assert greedy == likeliest, (before, after)
    assert not found[-1][1]


@pytest.mark.slow
def test_long_inputs_lose_their_beginning():
    model, params = small("transformer")
    adaptor = adaptor_of("transformer", max_length=8)
    text = "so long a text that none of it fits"
    pair = [(text[:-3], text[-3:])]
    ((total, _),) = adaptor.loglikelihood(requests("loglikelihood", pair), disable_tqdm=True)
    want, _ = direct(model, params, LETTERS.encode(text)[-9:], 3)
    assert total == pytest.approx(want, abs=1e-4)
    longer, _ = direct(model, params, LETTERS.encode(text)[-10:], 3)
    assert abs(want - longer) > 1e-3  # or the cut would show nothing
    with pytest.raises(ValueError, match="a continuation has 9 tokens; allowed: 1 to max_length"):
        adaptor.loglikelihood(requests("loglikelihood", [("a", "b" * 9)]), disable_tqdm=True)


@pytest.mark.slow
def test_rolling_loglikelihood_is_our_own_evaluation(tmp_path):
    length, texts = 8, ["a stream of three windows", "a second"]
    model, params = small("gdn")
    adaptor = adaptor_of("gdn", max_length=length, batch_size=4)
    found = adaptor.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    # Eight tokens at a time, and one over, which the harness gives a whole window of context.
    tokens = [LETTERS.eos_id, *LETTERS.encode(texts[0])]
    want, _ = direct(model, params, tokens[-length - 1 :], 1)
    for first in (0, 8, 16):
        want += direct(model, params, tokens[first : first + 9], 8)[0]
    assert found[0] == pytest.approx(want, abs=2e-4)

    np.array([LETTERS.eos_id, *LETTERS.encode(texts[1])], np.uint16).tofile(tmp_path / "t.bin")
    facts = {"dtype": "uint16", "vocab_size": 61, "tokenizer": "characters"}
    (tmp_path / "t.json").write_text(json.dumps({**facts, "alphabet": LETTERS.alphabet}))
    source = str(tmp_path / "t.bin")
    data = DataConfig(source=source, valid_source=source, sequence_length=length, batch_size=1)
    ours = evaluation.evaluate(model, params, open_pipeline(data, "valid"))
    assert ours["tokens"] == len(texts[1])
    assert -found[1] / ours["tokens"] == pytest.approx(ours["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_unless(FAST[:1], (*FAST, "gdn", "log-linear-gdn"), exhaustive=("log-linear-gdn",))
)
def test_continuations_are_what_generate_gives(name):
    model, params = small(name)
    adaptor = adaptor_of(name, batch_size=4)
    contexts = ["We", "the people of the", "in order", "", "a more perfect union of so many words"]
    whole = []
    for context in contexts:
        prompt = LETTERS.encode(context) if context else [LETTERS.eos_id]
        tokens = generate(model, params, prompt, 12, vocab_limit=61)
        ends = np.flatnonzero(tokens == LETTERS.eos_id)
        whole.append(LETTERS.decode(tokens[: ends[0]] if len(ends) else tokens))
    stop = whole[0][4:6]
    arguments = {"until": [stop], "max_gen_toks": 12, "do_sample": False}
    found = adaptor.generate_until(
        requests("generate_until", [(context, arguments) for context in contexts]),
        disable_tqdm=True,
    )
    assert found == [text.split(stop)[0] for text in whole]
    assert found[0] != whole[0]


def test_generation_ends_when_all_rows_have_stopped(monkeypatch):
    steps = []

    def endless(model, params, prompts, *args, **settings):
        for _ in range(30):
            steps.append(len(prompts))
            yield np.array([len(steps), LETTERS.eos_id, 7, 7][: len(prompts)], np.int32)

    monkeypatch.setattr(evaluation.lm_eval, "stream", endless)
    arguments = {"until": "d", "max_gen_toks": 30}
    asked = requests("generate_until", [("ab", arguments), ("a", arguments)])
    assert adaptor_of("gdn").generate_until(asked, disable_tqdm=True) == ["bc", ""]
    assert steps == [2] * 3


def test_continuations_keep_their_space_and_stop_at_whole_characters(tmp_path, monkeypatch):
    path = tokenizer_files.write(tmp_path / "t.json", "byte fallback")
    tokenizer = open_tokenizer(str(path))
    both = tokenizer.encode("the cat sat on ß the").tolist()
    new = both[len(tokenizer.encode("the cat")) :]
    given = [np.array([token], np.int32) for token in new]
    monkeypatch.setattr(evaluation.lm_eval, "stream", lambda *args, **kwargs: iter(given))
    adaptor = adaptor_of("gdn")
    adaptor._tokenizer = tokenizer
    for until, expected in (([], " sat on ß the"), (["ß"], " sat on "), ([" the"], " sat on ß")):
        asked = requests("generate_until", [("the cat", {"until": until, "max_gen_toks": 30})])
        assert adaptor.generate_until(asked, disable_tqdm=True) == [expected]


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch():
    arguments = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", [(text, arguments) for text in ("one", "two two", "three")])
    alone, together = (
        adaptor_of("multiscreen", batch_size=size).generate_until(asked, disable_tqdm=True)
        for size in (1, 4)
    )
    assert alone == together
    other = adaptor_of("multiscreen", seed=1).generate_until(asked, disable_tqdm=True)
    assert other != together


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_gen_toks": 64}, "asks for 64 new tokens; allowed: 1 to 63"),
        ({"max_gen_toks": 4, "repetition_penalty": 2.0}, "asks for repetition_penalty=2.0; allow"),
    ],
)
def test_what_we_cannot_generate(arguments, message):
    with pytest.raises(ValueError, match=message):
        adaptor_of("gdn").generate_until(requests("generate_until", [("a", arguments)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be an integer >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer >= 1, got 1.5"),
        ({"max_length": 257}, "max_length is 257, but the model's levels hold 256"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"prefix_token": 61}, "prefix_token is 61; allowed: 0 to 60"),
        ({"prefix_token": -1}, "prefix_token is -1; allowed: 0 to 60"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        adaptor_of("log-linear-gdn", **settings)


def test_tokenizers_that_do_not_fit():
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens, the model only 61"):
        evaluation.lm_eval.Adaptor(*small("gdn"), open_tokenizer("bytes"))
    endless = CharacterTokenizer("ab", ends_documents=False)
    adaptor = evaluation.lm_eval.Adaptor(*small("gdn"), endless)
    with pytest.raises(ValueError, match="no end-of-document token to begin a text with; give pre"):
        adaptor.loglikelihood(requests("loglikelihood", [("", "a")]), disable_tqdm=True)


QUESTIONS = [
    {"question": "what is it", "choices": ["a cat", "a dog", "nothing"], "answer": 1},
    {"question": "and where", "choices": ["at home", "here", "away"], "answer": 1},
    {"question": "who", "choices": ["me", "i shhh"], "answer": 1},  # which the model says
]
TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "{{question}}:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "answer": """
output_type: generate_until
doc_to_text: "{{question}}:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "read": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three tasks on local questions; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps(question) for question in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    for name, text in TASKS.items():
        files = f"{{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}"
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {files}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + text)
    return folder


@pytest.mark.slow
def test_whole_tasks(tasks):
    """What the model says of each question is right for some, and wrong for others."""
    model, params = small("transformer")
    manager = TaskManager(include_path=tasks, include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=adaptor_of("transformer"), tasks=list(TASKS), task_manager=manager, bootstrap_iters=0
    )["results"]

    right, nats, exact = [], 0.0, []
    for doc in QUESTIONS:
        prompt = list(LETTERS.encode(doc["question"] + ":"))
        # The harness puts a space between a question and its answer.
        endings = [list(LETTERS.encode(" " + choice)) for choice in doc["choices"]]
        scores = [direct(model, params, prompt + end, len(end))[0] for end in endings]
        right.append(int(np.argmax(scores)) == doc["answer"])
        said = LETTERS.decode(generate(model, params, prompt, 6)).split(".")[0]
        exact.append(said == doc["choices"][doc["answer"]])
        text = [LETTERS.eos_id, *LETTERS.encode(doc["question"])]
        nats -= direct(model, params, text, len(text) - 1)[0]
    assert {*right} == {*exact} == {True, False}
    size = sum(len(doc["question"]) for doc in QUESTIONS)
    assert found["choose"]["acc,none"] == np.mean(right)
    assert found["answer"]["exact_match,none"] == np.mean(exact)
    assert found["read"]["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two-steps"
    settings = dict(output_dir=str(folder), steps=2, tensorboard=False)
    train(override(tiny.config(), train=settings, model=dict(implementation="reference")))
    return folder


def run(finished, tasks, *names):
    chosen = LmEvalConfig(tasks=names, include_path=str(tasks))
    return evaluate.run(EvaluateConfig(run=str(finished), task="lm-eval", lm_eval=chosen))


@pytest.mark.slow
def test_the_command(finished, tasks, capsys):
    record = run(finished, tasks, "choose", "read")
    assert record["max_length"] == 32
    assert record["results"]["read"]["bits_per_byte,none"] > 4
    saved = json.loads((finished / "evaluation" / "lm-eval.json").read_text())
    assert saved["results"]["choose"]["acc,none"] == record["results"]["choose"]["acc,none"]
    assert "bits_per_byte" in capsys.readouterr().out


@pytest.mark.slow
def test_errors_of_the_command(finished, tasks):
    with pytest.raises(ValueError, match=r"knows no task 'chose'; did you mean choose"):
        run(finished, tasks, "chose")
    with pytest.raises(ValueError, match=r"--lm-eval\.tasks is empty"):
        run(finished, tasks)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        run(finished, tasks / "nowhere", "choose")
