"""`kvps quickstart`: what it shows works, and what it prints can be typed."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kvps.cli.samples import python_documentation, sentences

KVPS = [sys.executable, "-m", "kvps"]
CHECKOUT = str(Path(__file__).parents[2])


def quickstart(folder, *arguments, **options):
    """Run it in a folder and return the CompletedProcess."""
    return subprocess.run([*KVPS, "quickstart", *arguments], cwd=folder, capture_output=True, text=True, **options)


def test_quickstart_works_and_its_commands_too(tmp_path):
    """It trains, updates, scores and forgets; after forgetting the first perplexity is back; its lines can be typed."""
    done = quickstart(tmp_path, check=True)
    commands = re.findall(r"^\$ (.*)", done.stdout, re.MULTILINE)
    perplexities = re.findall(r"^perplexity +([\d.]+|infinite)$", done.stdout, re.MULTILINE)

    assert done.stderr == ""
    assert [shlex.split(line)[3] for line in commands] == [
        "train", "perplexity", "update", *["perplexity"] * 4, "forget", "perplexity", "stats"]
    assert perplexities[0] == perplexities[-1] != perplexities[1]
    assert 50 < float(perplexities[1]) < 300
    assert done.stdout.splitlines()[-1].startswith(f"# The store is {tmp_path}/kvps-quickstart/store;")
    typed = subprocess.run(commands[1], shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"perplexity                 {perplexities[0]}" in typed.stdout


def test_quickstart_again(tmp_path):
    """In the same folder it goes on with the same store; among other texts it stops."""
    first = quickstart(tmp_path, "a b", check=True)
    second = quickstart(tmp_path, "a b", check=True)
    (tmp_path / "a b" / "train.txt").write_text("another text\n")
    third = quickstart(tmp_path, "a b")

    assert "'a b/store'" in first.stdout
    assert "already counted in version 1" in second.stdout
    assert third.returncode == 2 and third.stderr.count("\n") == 1 and "name another folder" in third.stderr


def test_quickstart_without_the_corpus(tmp_path):
    """One line says how to get a corpus that is not installed; what is no corpus is a usage error."""
    nowhere = {"NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": CHECKOUT}

    missing = quickstart(tmp_path, "--corpus", "nltk:reuters", env=nowhere)
    wrong = quickstart(tmp_path, "--corpus", "reuters")

    if missing.returncode == 0:
        pytest.skip("the corpus is installed in a place of the system")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert "nltk.downloader reuters" in missing.stderr
    assert wrong.returncode == 2 and "nltk:reuters" in wrong.stderr


@pytest.mark.slow
def test_quickstart_with_reuters(tmp_path, shared):
    """The tutorial's job: train on the training documents, score the test documents."""
    done = quickstart(tmp_path, "--corpus", "nltk:reuters", check=True,
                      env={"NLTK_DATA": str(shared / "data" / "nltk_data"), "PYTHONPATH": CHECKOUT})

    assert "6,993 + 776 lines to train on, 3,019 held out" in done.stdout


def test_sample_parts_are_apart():
    """No sentence is both trained on and held out, and there is enough of each."""
    sample = python_documentation()

    assert not set(sample.train + sample.more) & set(sample.heldout)
    assert min(map(len, (sample.train, sample.more, sample.heldout))) > 50
    assert not any("\n" in line or not line.strip() for line in sample.train)


def test_sentences_of_a_page():
    """Headings, grammars, code and tables are left out; a sentence keeps the quotation mark that closes it."""
    page = ('Title\n*****\n\nThe "if" statement is\nused for "choices." It has parts. See below (or not.) Done.'
            '\n\n'
            '   if_stmt ::= "if" expression\n\n   x = 1\n')

    assert sentences(page) == [
        'The "if" statement is used for "choices."', "It has parts.", "See below (or not.)", "Done."]
