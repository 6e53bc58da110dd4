"""Bad input to several processes: one sentence, told once, an exit code that is not zero everywhere, nothing lost."""

import pytest

pytestmark = pytest.mark.xdist_group("two processes")

SENTENCES = {
    "no sharding": (2, "sharding.kind=none, but 2 processes were started"),
    "few micro-batches": (2, "accumulation_steps=1 is below the 2 processes"),
    "another recipe": (2, "the recipe differs between rank 0 and rank 1"),
    "used folder": (2, "already holds a run"),
    "no cores": (2, "sharding.cores=true has no cores to send under fsdp2"),
    "no gradients": (2, "sharding.cores=false asks for whole gradients"),
    "shared bases": (2, "sharding.basis=sharded, but under sharding.kind=ddp every process has all"),
    "another version": (2, "the version of featherweight differs between rank 0 and rank 1"),
    "fewer steps": (1, "steps=3 of the recipe are fewer than the 8"),
    "unseen folder": (1, "holds other checkpoints for each process (newest step by rank 0: 2, rank 1: none)"),
}


@pytest.mark.parametrize("what", SENTENCES)
def test_bad_input_ends_all_processes_with_one_sentence_that_one_of_them_says(two, what):
    # Mutations: every process says it, or one alone ends and the other waits for the time-out.
    code, words = SENTENCES[what]
    (first, said), (second, silent) = (each["refused"][what] for each in two)
    assert first == second == code
    assert words in said and said.count("error:") == 1 and len(said.strip().splitlines()) == 1
    assert silent == ""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unseen save", "CheckpointError: rank 1: distributed: folder=once cannot be written, as rank 1 does not see"),
        ("mixed devices", "rank 0 has cpu and rank 1 meta; expected one kind of device"),
    ],
)
def test_what_a_program_of_ones_own_does_wrong_is_an_error_of_all_processes(two, what, words):
    assert all(words in each["refused"][what][1] for each in two)


def test_a_run_that_was_there_is_as_it_was(two):
    assert all(each["refused"]["kept"] and each["refused"]["unseen kept"] for each in two)
