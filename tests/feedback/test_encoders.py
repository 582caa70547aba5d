"""Cosines of texts: by words, by rare words, by a sentence encoder."""

import numpy as np
import pytest

from workbench.feedback import encoders


def test_words_count_once_and_rare_words_weigh_more():
    words = encoders.cosines(["a b c"], ["a x y", "a b c d"], "words")
    np.testing.assert_allclose(words, [[1 / 3, 3 / np.sqrt(3 * 4)]])
    rare = encoders.cosines(["common rare"], ["common q", "common z", "rare v"], "tfidf")
    assert rare.argmax() == 2
    assert encoders.cosines_of_vectors(np.zeros((1, 2)), np.eye(2)).tolist() == [[0, 0]]


def test_without_the_extra_the_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "workbench\[retrieval\]"; encoder="tfidf" needs nothing'):
        encoders.cosines(["a b"], ["a x"], "some/encoder")


@pytest.mark.slow
def test_a_sentence_encoder_from_a_folder(tmp_path):
    """A random BERT saved as a sentence-transformers model: equal words have similarity 1."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "x", "y"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    small = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(small).save_pretrained(tmp_path / "bert")
    word = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[word, Pooling(16)], device="cpu").save(str(tmp_path / "encoder"))
    found = encoders.cosines(["a b"], ["x y", "a  b"], str(tmp_path / "encoder"))
    assert found.shape == (1, 2)
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    assert -1.001 <= found[0, 0] <= 1.001
