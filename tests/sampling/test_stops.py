import pytest

from rest_em.sampling.stops import Stops

EOS = 2


def play(tokenizer, token_ids, stop_strings=(), max_new_tokens=100):
    """Feed tokens one by one, as an engine does, and return the first ending and after how many tokens."""
    stops = Stops(tokenizer, frozenset([EOS]), stop_strings)
    for length in range(1, len(token_ids) + 1):
        ending = stops.ending(token_ids[:length], max_new_tokens)
        if ending is not None:
            return ending, length
    return None, len(token_ids)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_end_token_is_kept_in_the_ids_and_left_out_of_the_text(tiny_tokenizer):
    ids = [*encode(tiny_tokenizer, "4"), EOS]
    ending, _ = play(tiny_tokenizer, ids)
    assert (ending.reason, ending.token_ids, ending.text) == ("eos", tuple(ids), "4")


def test_the_cap_ends_a_solution_with_all_its_tokens(tiny_tokenizer):
    ids = encode(tiny_tokenizer, "xyz")
    ending, length = play(tiny_tokenizer, ids, max_new_tokens=2)
    assert (ending.reason, ending.text, length) == ("length", "xy", 2)


def test_a_stop_string_over_several_tokens_ends_at_its_last_token(tiny_tokenizer):
    ids = encode(tiny_tokenizer, "4;Q: more")
    ending, length = play(tiny_tokenizer, ids, ["\n", "Q:"])
    assert (ending.reason, ending.text, length) == ("stop_string", "4;", 4)
    assert ending.token_ids == tuple(ids[:2])


def test_a_stop_string_that_is_a_special_token_ends_where_the_token_is_drawn(tiny_tokenizer):
    pad = tiny_tokenizer.pad_token_id
    ids = [*encode(tiny_tokenizer, "4<pa"), pad, *encode(tiny_tokenizer, "x")]
    ending, length = play(tiny_tokenizer, ids, ["<pad>", "Q:"])
    assert (ending.reason, ending.token_ids, ending.text) == ("stop_string", tuple(ids[:4]), "4<pa")
    assert length == 5
    ending, _ = play(tiny_tokenizer, [*encode(tiny_tokenizer, "4"), EOS], ["</s>"])
    assert ending.reason == "eos"


def test_a_stop_string_that_starts_inside_a_token_leaves_the_remainder_reencoded(tiny_tokenizer):
    ids = encode(tiny_tokenizer, "x = 12")
    assert tiny_tokenizer.convert_ids_to_tokens(ids)[-2:] == ["=Ġ", "12"]
    ending, _ = play(tiny_tokenizer, ids, ["2"])
    assert ending.text == "x = 1"
    assert ending.token_ids == (*ids[:-1], *encode(tiny_tokenizer, "1"))


def test_the_first_of_two_stop_strings_in_one_token_counts(tiny_tokenizer):
    ids = encode(tiny_tokenizer, "zab")
    ending, _ = play(tiny_tokenizer, ids, ["b", "a"])
    assert (ending.text, ending.token_ids) == ("z", tuple(ids[:1]))


@pytest.mark.parametrize("stop", ["é", "né", "終", "。終"])
def test_a_stop_string_of_several_bytes_a_character_is_found(tiny_tokenizer, stop):
    ids = encode(tiny_tokenizer, f"x{stop}y")
    ending, length = play(tiny_tokenizer, ids, [stop])
    assert (ending.reason, ending.text, length) == ("stop_string", "x", len(ids) - 1)


def test_a_token_that_ends_inside_a_character_is_not_a_stop(tiny_tokenizer):
    ids = encode(tiny_tokenizer, "xè")
    assert play(tiny_tokenizer, ids, ["é"])[0] is None


def test_a_solution_that_begins_with_the_stop_string_is_empty(tiny_tokenizer):
    ending, _ = play(tiny_tokenizer, encode(tiny_tokenizer, "\n\nx"), ["\n"])
    assert (ending.text, ending.token_ids) == ("", ())


def test_the_ids_of_a_stopped_solution_decode_to_its_text(tiny_tokenizer):
    text = "aab ab = 12 = ab\n\n12 12 é\nQ: end"
    ids = encode(tiny_tokenizer, text)
    for stop in ["b ", "= a", "\n1", "\n", "2 é", " é", "Q:", "nd", "b\n"]:
        ending, _ = play(tiny_tokenizer, ids, [stop])
        assert ending.text == text[: text.index(stop)]
        assert tiny_tokenizer.decode(list(ending.token_ids)) == ending.text


def test_an_end_token_goes_before_the_cap(tiny_tokenizer):
    ending, _ = play(tiny_tokenizer, [*encode(tiny_tokenizer, "4"), EOS], max_new_tokens=2)
    assert ending.reason == "eos"
