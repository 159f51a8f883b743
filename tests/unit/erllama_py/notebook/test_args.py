"""Lines of the magics, parsed or refused."""

from __future__ import annotations

import pickle

import pytest

from erllama_py._notebook.args import COMMANDS, PROMPT, BadUsage, Command, parse, split


def refusal(command: Command, line: str) -> str:
    with pytest.raises(BadUsage) as caught:
        parse(command, split(line))
    return str(caught.value)


def test_options_that_are_not_given_are_absent() -> None:
    arguments = parse(PROMPT, [])
    assert (arguments.max, arguments.model, arguments.stop, arguments.raw) == (
        None,
        None,
        [],
        False,
    )


def test_all_sampling_options_are_numbers() -> None:
    line = "--max 7 --temperature 0.8 --top-k 40 --top-p .9 --min-p 0.05 --seed 5"
    arguments = parse(PROMPT, split(line + " --repetition-penalty 1.1"))
    assert (arguments.max, arguments.temperature, arguments.top_k) == (7, 0.8, 40)
    assert (arguments.top_p, arguments.min_p, arguments.seed) == (0.9, 0.05, 5)
    assert arguments.repetition_penalty == 1.1


def test_stop_texts_may_be_quoted_and_hold_newlines() -> None:
    arguments = parse(PROMPT, split(r"""--stop '\n\n' --stop "two words" --stop 'a\\n'"""))
    assert arguments.stop == ["\n\n", "two words", "a\\n"]


def test_braces_and_dollars_are_text() -> None:
    arguments = parse(PROMPT, split("--system 'costs $5 {a} {{b}}'"))
    assert arguments.system == "costs $5 {a} {{b}}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--max x", "--max: must be a whole number from 1, not 'x'"),
        ("--max 0", "not '0'"),
        ("--max 1.5", "not '1.5'"),
        ("--temperature nan", "must be a number from 0"),
        ("--temperature inf", "not 'inf'"),
        ("--temperature -1", "not '-1'"),
        ("--top-p 1.2", "must be a number from 0 to 1"),
        ("--seed 99999999999999999999", "--seed: must be a whole number"),
        ("-f html", "markdown"),
        ("--stop", "expected one argument (a value that begins with a dash"),
        ("--maxx 3", "did you mean --max?"),
        ("--mod stub", "no option --mod"),
        ("tell me", "the prompt goes into the lines below"),
        ("--stop don't", "a quote is not closed"),
    ],
)
def test_a_wrong_prompt_line_says_what_and_how(line: str, words: str) -> None:
    assert words in refusal(PROMPT, line)


@pytest.mark.parametrize(
    ("command", "line", "words"),
    [
        ("load", "", "load needs a MODEL"),
        ("load", "a b", "no use for 'b'"),
        ("load", "a --slots 300", "from 1 to 255"),
        ("load", "a --exactness most", "'token', 'bit'"),
        ("status", "--verbose", "has no option --verbose"),
        ("cache", "--liv", "did you mean --live?"),
    ],
)
def test_a_wrong_command_line_says_what_and_how(command: str, line: str, words: str) -> None:
    assert words in refusal(COMMANDS[command], line)


def test_refusals_are_ordinary_exceptions_that_render_in_two_lines() -> None:
    error = BadUsage("no", "yes")
    assert error._render_traceback_() == ["BadUsage: no", "  hint: yes"]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
