import copy

import pytest

from rest_em.errors import ProblemError
from rest_em.tokens import encode_continuation, encode_prompt

BOS, EOS = 1, 2


def test_a_text_gets_one_bos(tiny_tokenizer):
    ids = encode_prompt(tiny_tokenizer, "2 + 2 =")
    assert ids == [BOS, *tiny_tokenizer.encode("2 + 2 =", add_special_tokens=False)]


def test_a_text_that_begins_with_bos_does_not_get_another(tiny_tokenizer):
    assert encode_prompt(tiny_tokenizer, "<s>2") == encode_prompt(tiny_tokenizer, "2")


def test_an_end_token_that_the_tokenizer_appends_is_left_out(tiny_tokenizer):
    from tokenizers import processors

    appending = copy.deepcopy(tiny_tokenizer)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert encode_prompt(appending, "2") == encode_prompt(tiny_tokenizer, "2")


def test_a_chat_is_rendered_by_the_template_with_one_bos(tiny_tokenizer):
    ids = encode_prompt(tiny_tokenizer, ({"role": "user", "content": "2 + 2?"},))
    assert tiny_tokenizer.decode(ids) == "<s>[user]2 + 2?\n[assistant]"
    assert ids.count(BOS) == 1


def test_a_chat_without_a_template_says_what_to_do(tiny_tokenizer):
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    with pytest.raises(ProblemError, match=r"no chat template.*prompt\.chat_template"):
        encode_prompt(plain, ({"role": "user", "content": "2"},))


def test_an_empty_prompt_without_bos_is_refused(tiny_tokenizer):
    from tokenizers import processors

    bare = copy.deepcopy(tiny_tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ProblemError, match="no token"):
        encode_prompt(bare, "")


def test_a_continuation_is_what_follows_the_prompt(tiny_tokenizer):
    chat = ({"role": "user", "content": "2 + 2?"},)
    for prompt in ("2 + 2 =", "", chat):
        ids = encode_continuation(tiny_tokenizer, prompt, " 4\n")
        assert ids == tiny_tokenizer.encode(" 4\n", add_special_tokens=False)
    assert encode_continuation(tiny_tokenizer, "<s>2 + 2 =", " 4") == ids[:2]


def test_no_token_of_a_continuation_reaches_back_into_the_prompt(tiny_tokenizer):
    merged = tiny_tokenizer.encode("12", add_special_tokens=False)
    assert len(merged) == 1
    ids = encode_continuation(tiny_tokenizer, "1", "2")
    assert tiny_tokenizer.decode(ids) == "2"


def test_a_continuation_gets_no_space_that_begins_texts():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "\u2581", "a", "b", "\u2581a", "\u2581b"]
    merges = [("\u2581", "a"), ("\u2581", "b")]
    spaced = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    spaced.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    spaced.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spaced, bos_token="<s>", eos_token="</s>")
    assert tokenizer.encode("b", add_special_tokens=False) == [words.index("\u2581b")]
    assert encode_continuation(tokenizer, "a", "b") == [words.index("b")]
    assert encode_continuation(tokenizer, "a", " b") == [words.index("\u2581b")]
