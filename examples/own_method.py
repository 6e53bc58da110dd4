"""A method of your own: fw train recipe.yaml --import examples/own_method.py 'methods=[{freeze_matching: {...}}]'

Freezes all weights whose name matches, such as the embeddings.
"""

import re

import featherweight as fw
from featherweight.report import Report


class FreezeMatching(fw.methods.Method):
    """Freeze parameters by name."""

    keeps_parameters = True
    pattern: str = "embed"
    """Regular expression; a parameter is frozen if it is found in its name."""

    def apply(self, model, calibration=None):
        """Freeze, and remember on the model what was not frozen before."""
        chosen = [name for name, one in model.named_parameters() if one.requires_grad and re.search(self.pattern, name)]
        for name in chosen:
            model.get_parameter(name).requires_grad_(False)
        model.frozen_by_name = chosen
        report = Report("FreezeMatching")
        report.add_facts({"frozen parameters": len(chosen)})
        return report

    def remove(self, model):
        """Let them train again."""
        for name in model.frozen_by_name:
            model.get_parameter(name).requires_grad_(True)
        del model.frozen_by_name


fw.methods.methods.register("freeze_matching", FreezeMatching)

if __name__ == "__main__":
    recipe = {
        "task": {"name": "text", "model": "tiny", "seq_len": 32, "max_train_tokens": 4000, "max_held_out_tokens": 500},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "methods": [{"freeze_matching": {"pattern": "embed|norm"}}],
        "steps": 4,
        "micro_batch_size": 2,
    }
    print(fw.train(recipe, callbacks=[]).report)
