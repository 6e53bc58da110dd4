import pytest
import torch
from guard_stand_in import FIXTURE, FORBIDDEN, generated_world, load_guard, marked

from featherweight.errors import ConfigError
from featherweight.guard.export import export_guard
from featherweight.guard.guarded_model import GuardedModel


def test_transformers_generate_runs_the_exported_folder_as_the_guarded_model_does(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, tokenizer = stand_in
    export_guard(FIXTURE.with_name("stand_in_guard"), tmp_path / "guarded")
    guard = load_guard()
    world = generated_world()
    for text in (world.prompts("test", "ordinary", 1)[0], marked(world.prompts("test", FORBIDDEN, 1)[0])):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        found = model.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            tokenizer=tokenizer,
            custom_generate=str(tmp_path / "guarded"),
            trust_remote_code=True,
        )
        plain = GuardedModel(model, tokenizer, guard).generate(**inputs, max_new_tokens=8, do_sample=False)
        assert torch.equal(found, plain)


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export_guard(FIXTURE.with_name("stand_in_guard"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
