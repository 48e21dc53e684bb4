import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from recorders.sim import TASKS, Environment
from tracekit.errors import PolicyError
from tracekit.model import REFERENCE_WORDS, IdTable, WordTokenizer, reference
from tracekit.model.text import FileTokenizer, load_tokenizer, prompt_of


def test_prompt_lowers_the_instruction():
    assert prompt_of("Close the Box") == "In: What action should the robot take to close the box?\nOut:"


def test_words_become_their_ids_and_strangers_the_unknown_id():
    tokenizer = WordTokenizer(("in", ":", "what", "action", "should", "the", "robot", "take", "to", "?", "out", "box"))
    assert tokenizer.encode("Seize the box") == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 8, 14, 12, 13, 4]
    assert tokenizer.tail_id == 2
    assert tokenizer.size == 15
    assert tokenizer.unknown("seize the red box") == ["seize", "red"]


@pytest.mark.parametrize("task", TASKS)
def test_reference_vocabulary_knows_what_the_simulator_says(task):
    environment = Environment(task, sensor=False)
    sentences = {environment.reset(seed=seed).instruction for seed in range(12)}
    assert len(sentences) > 3
    tokenizer = WordTokenizer(REFERENCE_WORDS)
    assert {word for sentence in sentences for word in tokenizer.unknown(sentence)} == set()
    assert max(len(tokenizer.encode(sentence)) for sentence in sentences) <= reference().max_text


@pytest.mark.parametrize(
    "instruction", ["Close the lid of the orange laptop.", "please sweep the pink dirt into the brown dustpan"]
)
def test_reference_vocabulary_knows_more_than_that(instruction):
    assert WordTokenizer(REFERENCE_WORDS).unknown(instruction) == []


def test_a_word_listed_twice_is_refused():
    with pytest.raises(PolicyError, match="listed twice"):
        WordTokenizer(("a", "a"))


def test_id_table_drops_the_tail_and_names_what_it_has():
    table = IdTable({"close box": [1, 512, 29871]})
    assert table.encode("close box") == [1, 512]
    with pytest.raises(PolicyError, match=r"no token ids for instruction 'open box'.*'close box'"):
        table.encode("open box")


@pytest.fixture
def llama_like(tmp_path):
    words = {"<unk>": 0, "<s>": 1, "In": 2, ":": 3, "close": 4, "box": 5, "?": 6, "Out": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokenizer_file_of_the_user_is_read_and_saved_again(llama_like, tmp_path):
    tokenizer = load_tokenizer(llama_like)
    assert isinstance(tokenizer, FileTokenizer)
    ids = tokenizer.encode("close box")
    assert ids[:3] == [1, 2, 3]
    assert ids[-5:] == [4, 5, 6, 7, 3]
    assert tokenizer.tail_id == 29871
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy)
    assert load_tokenizer(copy).encode("close box") == ids


@pytest.mark.parametrize("tokenizer", [WordTokenizer(("close", "box")), IdTable({"close box": [1, 5, 9]}, 9)])
def test_saved_tokenizers_load_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer


def test_without_a_file_the_table_is_empty_and_says_what_to_do(tmp_path):
    with pytest.raises(PolicyError, match=r"tokenizer\.json beside the checkpoint"):
        load_tokenizer(tmp_path).encode("close box")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocabulary.json", "{", "not JSON"),
        ("vocabulary.json", json.dumps({"word": []}), "lacks 'words'"),
        ("text_ids.json", json.dumps({"text_ids": {}}), "lacks 'tail_id'"),
        ("tokenizer.json", "{}", "not a tokenizer file"),
    ],
)
def test_damaged_files_are_named_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PolicyError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
