"""The tasks whose rows come out of the `evals` wheel, on invented rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cotune import data, sources, wheels
from cotune.errors import DataError
from cotune.tasks import food, heart_disease, naughty_strings, quartz, socialiqa, tomi

WHERE = "mine.jsonl:1"
STORY = (
    "Kim entered the red_barn. The key is in the tin_box. Lee hates the hat Kim moved the key to the shoe. "
    "Kim moved the t-shirt to the tin_box."
)


def chat(content: str, ideal: str) -> dict[str, Any]:
    return {
        "input": [{"role": "system", "content": "Obey."}, {"role": "user", "content": content}],
        "ideal": ideal,
    }


def test_tomi_offers_the_places_of_the_story_in_order_of_appearance() -> None:
    example = tomi.example(chat(f"{STORY} Where will Kim look for the key?", "shoe"), WHERE)
    assert example.choices == ("tin box", "shoe")
    assert example.completion == " shoe"
    assert example.prompt.endswith("to the tin box. Where will Kim look for the key?\nAnswer:")


def test_tomi_keeps_questions_about_one_story_together() -> None:
    first = tomi.example(chat(f"{STORY} Where is the key really?", "shoe"), WHERE)
    second = tomi.example(chat(f"{STORY} Where was the key at the beginning?", "tin_box"), WHERE)
    assert first.prompt != second.prompt
    assert tomi.passage(first.prompt) == tomi.passage(second.prompt) != ""


def test_tomi_refuses_an_answer_that_is_no_place_of_the_story() -> None:
    with pytest.raises(
        DataError, match="field 'ideal': got \"barn\"; expected a place of the story: tin_box, shoe"
    ):
        tomi.example(chat(f"{STORY} Where is the key really?", "barn"), WHERE)
    with pytest.raises(DataError, match="expected a story that names at least two places"):
        tomi.example(chat("The key is in the shoe. Where is the key really?", "shoe"), WHERE)


def test_heart_disease_shortens_labels_and_keeps_every_value() -> None:
    description = "Age: 33 years, Chest pain type: None, Serum cholesterol: 200 mg/dl, Oldpeak: 1.5"
    example = heart_disease.example(chat(description, "1"), WHERE)
    assert example.prompt == "Age: 33, Chest pain: None, Cholesterol: 200, ST depression: 1.5\nHeart disease:"
    assert (example.choices, example.completion) == (("No", "Yes"), " Yes")
    with pytest.raises(DataError, match="expected one of 0, 1"):
        heart_disease.example(chat(description, "Yes"), WHERE)


def test_naughty_strings_keeps_the_blanks_of_the_string() -> None:
    example = naughty_strings.example(chat("Is this string malicious?  a\u2028b ", "No"), WHERE)
    assert example.prompt == "String:  a\u2028b \nMalicious:"
    assert example.answer_idx == 0


def test_food_quotes_the_name() -> None:
    question = "Is the following string a food item or related to food? plum jam "
    example = food.example(chat(question, "Yes"), WHERE)
    assert (example.prompt, example.completion) == ('Is "plum jam" food? Answer:', " Yes")


def test_quartz_reads_the_texts_of_the_options() -> None:
    example = quartz.example(chat("The pot is hot: A hand\n\n A: burns: yes\n B: freezes", "B"), WHERE)
    assert example.prompt == "The pot is hot: A hand\nAnswer:"
    assert (example.choices, example.completion) == (("burns: yes", "freezes"), " freezes")
    with pytest.raises(DataError, match="expected a question, then a line `A"):
        quartz.example(chat("The pot is hot. A: burns B: freezes", "B"), WHERE)


def test_socialiqa_reads_the_texts_of_the_options() -> None:
    content = "Kim met Lee. Why? A: to talk, or so; B: no reason; C: hunger."
    example = socialiqa.example(chat(content, "C"), WHERE)
    assert example.prompt == "Kim met Lee. Why?\nAnswer:"
    assert example.choices == ("to talk, or so", "no reason", "hunger")
    with pytest.raises(DataError, match="expected a question, then `A"):
        socialiqa.example(chat("Kim met Lee. Why? A: talk; B: hunger.", "B"), WHERE)


def kept_wheel() -> Path | None:
    """The wheel, if it was ever fetched on this machine; a test downloads nothing."""
    return next((wheels.cache_dir() / "wheels").glob("evals-3.0.1.post1-*.whl"), None)


@pytest.mark.skipif(kept_wheel() is None, reason="the evals wheel is not in the cache (make demo fetches it)")
def test_every_row_of_the_pinned_wheel_is_read() -> None:
    counts = {"tomi": 5993, "heart_disease": 918, "naughty_strings": 400, "food": 761}
    counts |= {"quartz": 3860, "socialiqa": 2224}
    assert {task: len(data.load_examples(task)) for task in counts} == counts
    assert len(sources.read("wheel:evals/registry/data/food/samples.jsonl", limit=3)) == 3
