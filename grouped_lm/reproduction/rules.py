"""All rules by the names that `conf/reproduction/claims.yaml` uses."""

from grouped_lm.reproduction import cost_rules, quality_rules, size_rules
from grouped_lm.reproduction.verdicts import Rule

RULES: dict[str, Rule] = {
    "accuracy_sign": quality_rules.accuracy_sign,
    "flops_ratio": cost_rules.flops_ratio,
    "gain_by_vocabulary": cost_rules.gain_by_vocabulary,
    "group_accuracy": quality_rules.group_accuracy,
    "least_memory_size": size_rules.least_memory_size,
    "memory_grid": cost_rules.memory_grid,
    "memory_ratio": cost_rules.memory_ratio,
    "no_worse": quality_rules.no_worse,
    "order_follows_frequency": quality_rules.order_follows_frequency,
    "rare_tokens": quality_rules.rare_tokens,
    "size_no_worse": size_rules.size_no_worse,
    "size_tasks": size_rules.size_tasks,
    "speed_ratio": cost_rules.speed_ratio,
}
