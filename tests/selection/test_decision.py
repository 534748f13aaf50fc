"""The pure choice among verdicts: its rules hold for every set of candidates."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainboard.errors import (
    PlatformConflictError,
    PlatformContractError,
    PlatformError,
    PlatformUnavailableError,
)
from mainboard.platforms.decision import (
    CONTRACT_CODES,
    Request,
    answers_to,
    decide,
    request_from,
)
from mainboard.platforms.verdict import BUILT_IN, State, Verdict

BUILT_INS = ("cuda", "rocm", "cpu")
STATES = st.sampled_from(State)
CODES = st.sampled_from(["some_reason", *sorted(CONTRACT_CODES)])


def verdict(name, provider=BUILT_IN, state=State.ACTIVATED, code="some_reason"):
    """A verdict with a reason that can be recognised."""
    reason = f"Because of {name} from {provider}."
    return Verdict(name, provider, state, code, reason, value=f"module.{name}")


@st.composite
def boards(draw):
    """Some plugins, distinct by (distribution, name), and then the built-ins."""
    plugins = draw(
        st.lists(
            st.builds(
                verdict,
                st.sampled_from(["npu", "tpu", "cpu", "x"]),
                st.sampled_from(["acme 1", "globex 2.0", "In_Itech 3"]),
                STATES,
                CODES,
            ),
            max_size=5,
            unique_by=lambda each: (each.name, each.provider),
        )
    )
    return [*plugins, *(verdict(name, BUILT_IN, draw(STATES), draw(CODES)) for name in BUILT_INS)]


def active(board, built_in):
    """The activated built-ins, or the activated others."""
    return [v for v in board if v.state is State.ACTIVATED and v.built_in is built_in]


@given(boards())
def test_every_decision_is_a_choice_or_an_error(board):
    """Exactly one of the two, with every verdict in it, and all of it JSON."""
    decision = decide(board)
    assert (decision.chosen is None) != (decision.error is None)
    assert decision.verdicts == tuple(board)
    assert decision.reason
    restored = json.loads(json.dumps(decision.to_dict()))
    assert [row["reason"] for row in restored["verdicts"]] == [v.reason for v in board]
    text = decision.explain_text()
    for each in board:
        assert each.label in text
        assert each.reason in text


@given(boards())
def test_only_an_activated_candidate_is_chosen(board):
    """Whatever the rule, a choice is a usable candidate of the board."""
    chosen = decide(board).chosen
    if chosen is not None:
        assert chosen in board
        assert chosen.state is State.ACTIVATED


@given(boards())
def test_one_out_of_tree_platform_precedes_every_built_in(board):
    """One wins, two are a conflict that names all of them and how to choose."""
    decision, foreign = decide(board), active(board, False)
    if len(foreign) == 1:
        assert decision.chosen is foreign[0]
        assert decision.rule == "out_of_tree"
    elif foreign:
        assert isinstance(decision.error, PlatformConflictError)
        for each in foreign:
            assert each.provider in str(decision.error)
            assert f"MAINBOARD_PLATFORM={each.label}" in str(decision.error)


@given(boards())
def test_without_out_of_tree_platforms_the_first_built_in_is_chosen(board):
    """In the order of the board; none at all is an error with every reason."""
    decision, built_in = decide(board), active(board, True)
    if active(board, False):
        return
    if built_in:
        assert decision.chosen is built_in[0]
    else:
        assert isinstance(decision.error, PlatformUnavailableError)
        assert all(each.reason in str(decision.error) for each in board)


@given(boards())
def test_a_failure_is_never_passed_over_in_silence(board):
    """Whenever something is used, each failed candidate has one warning with its reason."""
    decision = decide(board)
    failed = [each for each in board if each.state is State.FAILED]
    if decision.chosen is not None:
        assert len(decision.warnings) == len(failed)
        for each, warning in zip(failed, decision.warnings, strict=True):
            assert each.reason in warning
            assert each.provider in warning


@given(boards(), st.data())
def test_a_full_name_means_one_candidate_and_nothing_else(board, data):
    """Asked for by its label, a candidate is used if it can be, and else is an error about it."""
    wanted = data.draw(st.sampled_from(board))
    setting = f"MAINBOARD_PLATFORM={wanted.label}"
    decision = decide(board, Request(wanted.label, setting))
    if wanted.state is State.ACTIVATED:
        assert decision.chosen is wanted
        assert decision.rule == "requested"
    else:
        assert decision.chosen is None
        assert setting in str(decision.error)
        assert wanted.reason in str(decision.error)
        contract = wanted.code in CONTRACT_CODES
        assert isinstance(decision.error, PlatformContractError) is contract


@given(boards(), st.data())
def test_the_choice_by_full_name_does_not_depend_on_other_candidates(board, data):
    """Removing another candidate changes nothing: only the named one counts."""
    wanted = data.draw(st.sampled_from(board))
    request = Request(wanted.label, "x")
    alone = decide([wanted], request)
    assert decide(board, request).chosen == alone.chosen


@given(boards(), st.text(max_size=8))
def test_an_unknown_name_is_an_error_that_lists_what_there_is(board, name):
    """Any text is safe to ask for."""
    if answers_to(name, board):
        return
    error = decide(board, Request(name, "the setting")).error
    assert isinstance(error, PlatformUnavailableError)
    assert all(each.label in str(error) for each in board)


@given(boards())
def test_a_bare_name_that_two_distributions_offer_is_refused(board):
    """Unless a built-in has it, which then is meant, with a warning about the namesakes."""
    for name in {each.name for each in board}:
        named = [each for each in board if each.name == name]
        decision = decide(board, Request(name, "the setting"))
        if name in BUILT_INS:
            assert [each.built_in for each in answers_to(name, board)] == [True]
            if decision.chosen:
                assert len(decision.warnings) == len(named) - 1
        elif len(named) > 1:
            assert isinstance(decision.error, PlatformConflictError)
            assert all(each.label in str(decision.error) for each in named)


@pytest.mark.parametrize(
    ("environment", "request_"),
    [
        ({}, None),
        ({"MAINBOARD_PLATFORM": "  "}, None),
        ({"MAINBOARD_PLATFORM": " cuda "}, Request("cuda", "MAINBOARD_PLATFORM=cuda")),
        ({"VLLM_TARGET_DEVICE": "cpu"}, Request("cpu", "VLLM_TARGET_DEVICE=cpu")),
        ({"VLLM_TARGET_DEVICE": "CPU"}, Request("cpu", "VLLM_TARGET_DEVICE=cpu")),
        ({"VLLM_TARGET_DEVICE": "cuda"}, None),
        (
            {"VLLM_TARGET_DEVICE": "cpu", "MAINBOARD_PLATFORM": "npu"},
            Request("npu", "MAINBOARD_PLATFORM=npu"),
        ),
    ],
)
def test_what_the_environment_asks_for(environment, request_):
    """Our variable first; vLLM's means the CPU and nothing else; blanks are nothing."""
    assert request_from(environment) == request_


def test_distribution_spellings_are_one():
    """`distribution/name` follows the packaging rules for names."""
    board = [verdict("npu", "In_Itech.X 3")]
    assert answers_to("in-itech-x/npu", board) == board
    assert answers_to("in-itech/npu", board) == []


def test_a_verdict_is_plain_json():
    """States are their words, and a built-in's label is its bare name."""
    row = verdict("cpu", state=State.NOT_PROBED).to_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["state"] == "not probed"
    assert verdict("cpu").label == "cpu"
    assert verdict("npu", "acme 1").label == "acme/npu"


def test_errors_are_platform_errors():
    """What reading `current_platform` raises passes through `from ... import`."""
    assert isinstance(decide([]).error, PlatformError)
