import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxymix.data.encoding import IGNORED, encode_source, encode_split, gather, prompt_ids, response_text, stack
from proxymix.data.tokenizers import train_bpe, word_tokenizer
from proxymix.errors import UserError
from proxymix.types import Example, Source

TOKENIZER = word_tokenizer(["a", "b", "c", "d", "e", "f"])
BOS, EOS, PAD = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id

words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6).map(" ".join)
examples = st.lists(st.builds(Example, words, words), min_size=1, max_size=6)


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_a_row_by_hand():
    split = encode_split([Example("a b", "c d"), Example("e", "f")], TOKENIZER, max_length=16)
    a, b, c, d, e, f = ids("a b c d e f")
    none = IGNORED
    assert split.input_ids.tolist() == [[BOS, a, b, c, d], [BOS, e, f, PAD, PAD]]
    # A label is the next token: the loss is on the answer and the end, never on the prompt. The end itself has no next.
    assert split.labels.tolist() == [[none, none, c, d, EOS], [none, f, EOS, none, none]]
    assert split.lengths.tolist() == [5, 3]


@given(examples)
def test_labels_are_the_answer_and_the_end_alone(rows):
    split = encode_split(rows, TOKENIZER, max_length=32)
    for example, labels, tokens in zip(rows, split.labels, split.input_ids, strict=True):
        places = (labels != IGNORED).nonzero().ravel()
        assert labels[places].tolist() == [*ids(example.response), EOS]
        assert torch.equal(tokens[places[1:]], labels[places[:-1]])


@given(words, words, st.integers(8, 16))
def test_a_long_prompt_is_cut_from_the_left_and_the_answer_never(prompt, response, max_length):
    split = encode_split([Example(f"{prompt} {prompt} {prompt}", response)], TOKENIZER, max_length)
    answer = [*ids(response), EOS]
    whole = [BOS, *ids(f"{prompt} {prompt} {prompt}"), *answer]
    assert [*split.input_ids[0].tolist(), EOS] == whole[-max_length:]
    assert split.labels[0][split.labels[0] != IGNORED].tolist() == answer


def test_an_answer_that_does_not_fit_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"tuning.max_length: .* got 4 for an answer of 4 tokens"):
        encode_split([Example("a", "b c d")], TOKENIZER, max_length=4)
    assert encode_split([Example("a", "b c d")], TOKENIZER, max_length=5).input_ids.shape == (1, 4)


def test_an_answer_or_a_prompt_without_a_token_is_an_error():
    with pytest.raises(UserError, match="must each have at least one token"):
        encode_split([Example("a", " ")], TOKENIZER, max_length=8)
    beginless = train_bpe(["a b c"], 300)
    beginless.bos_token = None
    with pytest.raises(UserError, match="must each have at least one token"):
        encode_split([Example("", "b")], beginless, max_length=8)


def test_the_answer_is_set_off_by_one_space_unless_the_prompt_ends_in_white_space():
    assert response_text(Example("Answer:", "yes")) == " yes"
    assert response_text(Example("assistant: ", "yes")) == "yes"
    assert prompt_ids("a", TOKENIZER) == [BOS, *ids("a")]


@settings(max_examples=40)
@given(examples, examples, st.data())
def test_gather_is_naive_padding(first, second, data):
    splits = [encode_split(rows, TOKENIZER, 32) for rows in (first, second)]
    every = [(s, row) for s in (0, 1) for row in range(len(splits[s]))]
    places = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=8))
    batch = gather(splits, places)
    longest = max(int(splits[s].lengths[row]) for s, row in places)
    assert batch.input_ids.shape == batch.labels.shape == (len(places), longest)
    for index, (s, row) in enumerate(places):
        length = int(splits[s].lengths[row])
        assert torch.equal(batch.input_ids[index, :length], splits[s].input_ids[row, :length])
        assert torch.equal(batch.labels[index, :length], splits[s].labels[row, :length])
        assert (batch.labels[index, length:] == IGNORED).all()
    assert batch.num_answer_tokens == sum(int((splits[s].labels[row] != IGNORED).sum()) for s, row in places)


@given(examples, examples)
def test_stack_knows_whose_each_row_is(first, second):
    splits = [encode_split(rows, TOKENIZER, 32) for rows in (first, second)]
    batch, owners = stack(splits)
    assert owners.tolist() == [0] * len(first) + [1] * len(second)
    expected = gather(splits, [(s, row) for s in (0, 1) for row in range(len(splits[s]))])
    assert torch.equal(batch.labels, expected.labels)
    read = torch.arange(batch.input_ids.shape[1]) < torch.cat([split.lengths for split in splits])[:, None]
    assert torch.equal(batch.input_ids[read], expected.input_ids[read])


def test_a_source_is_encoded_without_its_test_split():
    rows = tuple(Example(f"a {letter}", letter, harmful=letter in "ab") for letter in "abcdef")
    source = Source("safety", train=rows[:2], buffer=rows[:1], validation=rows[1:5], test=rows[5:], scorer="refusal")
    encoded = encode_source(source, TOKENIZER, max_length=16, probe_size=2)
    assert [len(split) for split in (encoded.train, encoded.buffer, encoded.validation, encoded.probe)] == [2, 1, 4, 2]
    assert torch.equal(encoded.probe.input_ids, encoded.validation.input_ids[:2])
    assert encoded.harmful.tolist() == [True, False, False, False]
    unseen = ids("f")[0]
    assert not any((split.input_ids == unseen).any() for split in (encoded.train, encoded.buffer, encoded.validation))


def test_an_empty_buffer_is_legal():
    source = Source("code", train=(Example("a", "b"),), buffer=(), validation=(Example("b", "c"),) * 2, test=())
    encoded = encode_source(source, TOKENIZER, max_length=8, probe_size=2)
    assert len(encoded.buffer) == 0
    assert encoded.harmful is None
