"""featherweight's optimizers in TRL's trainers, those without `optimizer_cls_and_kwargs` included."""

import copy
import math

import datasets
import peft
import pytest
import torch
import transformers
import trl
from transformers import LlamaConfig, LlamaForCausalLM

from featherweight.errors import ConfigError
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.training import ReportCallback, trainer_optimizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
TOKENIZER = byte_tokenizer()
PAIRS = [{"prompt": f"q{i}", "chosen": f" yes {i}", "rejected": " no"} for i in range(16)]


def llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": 256, "bos_token_id": 256, "pad_token_id": 256}
    return LlamaForCausalLM(LlamaConfig(vocab_size=257, **sizes, **ids))


def arguments(kind, folder, **options):
    settings = {
        "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False,
        "gradient_checkpointing": False, "dataloader_pin_memory": False, "logging_steps": 1,
    }  # fmt: skip
    return kind(str(folder), **{**settings, **options})


def train(trainer, model, args, rows, *, options=None, **extra):
    """Train and return keyword arguments and trainer; the user's line is the one with the two stars."""
    callback = ReportCallback()
    ours = trainer_optimizer("galore_8bit", model, args, trainer=trainer, rank=4, **(options or {}))
    data = datasets.Dataset.from_list(rows)
    running = trainer(
        model, args=args, train_dataset=data, processing_class=TOKENIZER, callbacks=[callback], **extra, **ours
    )
    running.train()
    return ours, running, callback


def require_trained(model, before, ours, callback, is_layerwise):
    """Every matrix has moved, and layer-wise updates came and went."""
    assert ours.optimizer is not None
    steps = {int(state["step"].max()) for state in ours.optimizer.state.values()}
    assert steps == {2}, "two windows of two micro-batches"
    moved = [not torch.equal(value, before[name]) for name, value in model.state_dict().items()]
    assert all(moved)
    if is_layerwise:
        assert callback.handle.steps == 2 and not callback.handle.is_active
    assert callback.report is not None


@pytest.mark.parametrize("is_layerwise", [False, True])
def test_dpo_trains(is_layerwise, tmp_path):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    args = arguments(trl.DPOConfig, tmp_path)
    ours, running, callback = train(
        trl.DPOTrainer, model, args, PAIRS, options={"layerwise": is_layerwise}, ref_model=copy.deepcopy(model)
    )
    assert list(ours) == ["optimizers"]
    require_trained(model, before, ours, callback, is_layerwise)
    losses = [line["loss"] for line in running.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3) and losses[1] < losses[0]  # policy = reference at first


def test_dpo_with_adapters_wants_the_wrapped_model(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    args = arguments(trl.DPOConfig, tmp_path)
    with pytest.raises(ConfigError, match="DPOTrainer trains 8 parameters.*0 are in the optimizer.*get_peft_model"):
        train(trl.DPOTrainer, llama(), args, PAIRS, peft_config=config)
    model = peft.get_peft_model(llama(), config)
    before = copy.deepcopy({n: p for n, p in model.named_parameters() if p.requires_grad})
    train(trl.DPOTrainer, model, args, PAIRS)
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("is_layerwise", [False, True])
def test_kto_trains(is_layerwise, tmp_path):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    rows = [{"prompt": f"q{i}", "completion": f" yes {i}", "label": i % 2 == 0} for i in range(16)]
    args = arguments(trl.KTOConfig, tmp_path)
    ours, _, callback = train(
        trl.KTOTrainer, model, args, rows, options={"layerwise": is_layerwise}, ref_model=copy.deepcopy(model)
    )
    require_trained(model, before, ours, callback, is_layerwise)


@pytest.mark.slow
@pytest.mark.parametrize("is_layerwise", [False, True])
@pytest.mark.parametrize(("trainer", "config"), [(trl.GRPOTrainer, trl.GRPOConfig), (trl.RLOOTrainer, trl.RLOOConfig)])
def test_trainers_that_sample_train(trainer, config, is_layerwise, tmp_path):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    rows = [{"prompt": f"q{i}"} for i in range(16)]
    args = arguments(config, tmp_path, num_generations=2, max_completion_length=6, beta=0.0)

    def rewards(completions, **_):
        return [float(sum(map(ord, each)) % 17) for each in completions]

    ours, _, callback = train(trainer, model, args, rows, options={"layerwise": is_layerwise}, reward_funcs=rewards)
    require_trained(model, before, ours, callback, is_layerwise)


def test_the_keyword_is_that_of_the_trainer(tmp_path):
    args = arguments(trl.DPOConfig, tmp_path)

    class Subclass(trl.SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    keywords = {
        trainer: next(iter(trainer_optimizer("galore", llama(), args, trainer=trainer, rank=4)))
        for trainer in (transformers.Trainer, trl.SFTTrainer, Subclass, trl.RewardTrainer, trl.DPOTrainer)
    }
    assert list(keywords.values()) == ["optimizer_cls_and_kwargs"] * 4 + ["optimizers"]


def test_a_trainer_that_gets_a_built_optimizer_needs_the_arguments():
    with pytest.raises(ConfigError, match="args=None, and DPOTrainer takes an optimizer that is built already"):
        trainer_optimizer("galore", llama(), trainer=trl.DPOTrainer, rank=4)
    with pytest.raises(ConfigError, match="trainer=Linear takes neither"):
        trainer_optimizer("galore", llama(), trainer=torch.nn.Linear, rank=4)
