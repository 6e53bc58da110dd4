"""The guard inside of transformers' `generate`: its hook `custom_generate`, with its processors and criteria."""

from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.decoding import AnswerRules, Judged, answers, judge_prompts
from featherweight.guard.monitor import Monitor
from featherweight.models.generation import stop_token_ids_of
from featherweight.models.sampling import GREEDY, Sampling


def decoding_loop(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    guard: Any = None,
    guard_streamer: Any = None,
    **model_kwargs: Any,
) -> Any:
    """Generate as `model.generate` does, but refuse what the guard flags; no token reaches a streamer before.

    Passed as ``model.generate(**inputs, custom_generate=guard.decoding_loop, guard=guard)``. Its other arguments are
    transformers'. The tokens of requests that pass are those of an unguarded call. Transformers hands no `streamer` to
    a loop of others, so give it as `guard_streamer`; `GuardedModel.generate` takes it under its usual name.

    Returns:
        (B, L + T) token ids; with `return_dict_in_generate` transformers' output with an attribute `guard`, a list of
        verdicts. Flagged rows hold the refusal text.

    Raises:
        ConfigError: without a guard, with beams or an assistant, or for an encoder-decoder.
    """
    from transformers.generation import GenerateDecoderOnlyOutput

    _refuse_what_does_not_fit(model, generation_config, guard)
    start = input_ids.shape[1]
    pad = generation_config.pad_token_id
    stops = stop_token_ids_of(model) if generation_config.eos_token_id is None else generation_config.eos_token_id
    rules = AnswerRules(
        max_new_tokens=generation_config.max_length - start,
        sampling=Sampling(temperature=1.0) if generation_config.do_sample else GREEDY,
        stop_token_ids=(stops,) if isinstance(stops, int) else tuple(stops),
        pad_token_id=pad,
        processors=[logits_processor],
        criteria=[lambda read: stopping_criteria(read, None)],
        monitor=guard.new_monitor(len(input_ids)),
    )
    judged = judge_prompts(
        guard,
        model,
        input_ids,
        model_kwargs.get("attention_mask"),
        rules,
        parallel=beside(guard, model, len(input_ids)),
    )
    tokens: list[Tensor] = []
    streamer = streamer or guard_streamer
    shown = 0
    if streamer is not None:
        streamer.put(input_ids.cpu())
    # A token is watched when the next one has been chosen, so one more of them waits.
    held = 0 if rules.monitor is None else rules.monitor.hold_back + 1
    for chosen in answers(judged, rules):
        tokens.append(chosen)
        if streamer is not None and len(tokens) > held and not _is_stopped(rules):
            streamer.put(tokens[shown].cpu())
            shown += 1
    sequences = assemble(guard, input_ids, judged, tokens, pad, rules.monitor)
    if streamer is not None:
        if start + shown < sequences.shape[1]:
            streamer.put(sequences[0, start + shown :].cpu())
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences
    output = GenerateDecoderOnlyOutput(sequences=sequences)
    output.guard = judged.verdicts
    if rules.monitor is not None:
        output.guard_stopped = [one is not None for one in rules.monitor.stopped_at]
    return output


def _is_stopped(rules: AnswerRules) -> bool:
    return rules.monitor is not None and any(one is not None for one in rules.monitor.stopped_at)


def beside(guard: Any, model: Any, rows: int) -> bool:
    """Tell whether the probe is to be read beside the answer."""
    wanted = guard.options.branch
    return wanted == "parallel" or (wanted == "auto" and rows == 1 and next(model.parameters()).device.type != "cpu")


def assemble(
    guard: Any,
    input_ids: Tensor,
    judged: Judged,
    tokens: list[Tensor],
    pad: int | None,
    monitor: Monitor | None = None,
) -> Tensor:
    """Return prompts with answers and refusals, in the order of the requests, padded on the right.

    An answer that the monitor stopped ends with the refusal text behind the tokens that were not held back.
    """
    replies: dict[int, list[int]] = {row: found for row, found in judged.continued.items() if found}
    if tokens:
        stacked = torch.stack(tokens, dim=1).tolist()
        replies |= dict(zip(judged.answered, stacked, strict=True))
    for row in judged.answered:
        if monitor is not None and monitor.stopped_at[row] is not None:
            kept = replies[row][: monitor.shown(row, len(replies[row]))]
            replies[row] = [*kept, *guard.refusal_ids(judged.verdicts[row], input_ids[row].tolist())]
    for row, verdict in enumerate(judged.verdicts):
        if row not in replies:
            replies[row] = guard.refusal_ids(verdict, input_ids[row].tolist()) if verdict.flagged else []
    width = max((len(reply) for reply in replies.values()), default=0)
    new = input_ids.new_full((len(input_ids), width), 0 if pad is None else pad)
    for row, reply in replies.items():
        new[row, : len(reply)] = torch.tensor(reply, dtype=new.dtype)
    return torch.cat([input_ids, new], dim=1)


def _refuse_what_does_not_fit(model: Any, config: Any, guard: Any) -> None:
    if guard is None:
        raise ConfigError("guard: guard=None; expected a PrefixGuard or an ensemble. Pass generate(..., guard=guard).")
    found = None
    if model.config.is_encoder_decoder:
        found = f"model={type(model).__name__} is an encoder-decoder; expected a causal language model"
    elif (config.num_beams or 1) > 1:
        found = f"num_beams={config.num_beams} searches with beams; expected num_beams=1"
    elif getattr(config, "prompt_lookup_num_tokens", None) or getattr(config, "assistant_early_exit", None):
        found = "assisted decoding chooses several tokens at once; expected none"
    elif (config.num_return_sequences or 1) > 1 and guard.options.branch == "parallel":
        found = f"num_return_sequences={config.num_return_sequences} with branch=parallel; expected branch=sequential"
    if found:
        raise ConfigError(f"guard: {found}. Change that, or generate without a guard.")
