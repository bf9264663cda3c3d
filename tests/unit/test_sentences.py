"""Lines parted into sentences."""
import pytest

from kvps.text import sentences


@pytest.mark.parametrize(("line", "parts"), [
    ("Hello there. How are you? I'm fine! Yes", ["Hello there.", "How are you?", "I'm fine!", "Yes"]),
    ('"Stop!" he said. "Go on." She left.', ['"Stop!" he said.', '"Go on."', "She left."]),
    ("He said, “Go.” Then (they say.) Nothing. (Yes.)", ["He said, “Go.”", "Then (they say.)", "Nothing.", "(Yes.)"]),
    ("他说：“好。”然后走了。真的？！是", ["他说：“好。”", "然后走了。", "真的？！", "是"]),
    ("「なに？」と言った。　終わり。", ["「なに？」", "と言った。", "終わり。"]),
    ("Mr. Darcy met J. R. Smith in St. Ives. It was I. He left.",
     ["Mr. Darcy met J. R. Smith in St. Ives.", "It was I.", "He left."]),
    ("It was 3.5 km to kvps.org, e.g. by bus... or so. Yes?! No.",
     ["It was 3.5 km to kvps.org, e.g. by bus... or so.", "Yes?!", "No."]),
    ("Really?  \t Yes.\u00a0\u3000No", ["Really?", "Yes.", "No"]),
    ("Он ушёл. Она нет. и ещё", ["Он ушёл.", "Она нет. и ещё"]),
    ("Er ging. »Warum?« ¿Qué? Fin", ["Er ging.", "»Warum?«", "¿Qué?", "Fin"]),
    ("no end", ["no end"]), ("", [""]), ("...", ["..."]), ("。", ["。"]), ("The end.  ", ["The end.  "]), (" . A", [" .", "A"])])
def test_split(line, parts):
    """Lines are parted after 。！？ and, before a blank and no small letter, after . ! ?, with the quotes that close."""
    assert sentences.split(line) == "\n".join(parts)
    assert sentences.count(line + "\n") == [len(parts)]


def test_lines_stay():
    """Lines are parted each by itself, however blanks stand at their ends, and every line stays one at least."""
    text = "One. Two. \n \n\nC? D.\nE! \n"

    assert sentences.split(text) == "One.\nTwo. \n \n\nC?\nD.\nE! \n"
    assert sentences.count(text) == [2, 1, 1, 2, 1]
    assert sentences.count(text + "Four. G") == [2, 1, 1, 2, 1, 2]


def test_batches_do_not_matter(rng):
    """Splitting a text is splitting its lines, and counts are those of the lines that come of it."""
    for _ in range(2000):
        lines = ["".join(rng.choices("aA.!? 。？”\"(\t\r\0\u3000BMr", k=rng.randrange(16))) for _ in range(rng.randrange(1, 5))]
        text = "".join(line + "\n" for line in lines)

        parted = [sentences.split(line + "\n") for line in lines]
        assert sentences.split(text) == "".join(parted)
        assert sentences.count(text) == [part.count("\n") for part in parted]


def test_long_lines_take_linear_time():
    """Ends without end, and blanks without end, are gone through once."""
    for text in (". " * 500_000, "." * 1_000_000, "。" + " " * 1_000_000, "”" * 1_000_000, '."' * 500_000, ". " + "(" * 1_000_000):
        sentences.split(text)
