import logging
import warnings

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from imgsynth.callbacks import Length, quiet


def test_a_fit_says_nothing_needless(gan, data, trainer, tmp_path, caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        quiet()
        with caplog.at_level(logging.INFO):
            run = trainer(tmp_path, Length(8), enable_checkpointing=False, log_every_n_steps=50)
            run.fit(gan(), data())
            rank_zero_info("something new")
    assert [str(w.message) for w in caught] == []
    assert "something new" in caplog.text
    assert "Tip" not in caplog.text
    assert "max_steps" not in caplog.text


def test_other_warnings_still_come(recwarn):
    quiet()
    warnings.warn("the learning rate is very high", stacklevel=1)
    assert [str(w.message) for w in recwarn] == ["the learning rate is very high"]
