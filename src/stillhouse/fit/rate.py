"""Learning rate schedule of a training: linear warm-up, constant rate, linear decay to zero."""

from stillhouse.fit.recipe import StageRecipe


def learning_rate(recipe: StageRecipe, update: int) -> float:
    """Return the learning rate of an update: linear warm-up, constant rate, linear decay to zero.

    Args:
        recipe: learning rate of the constant part, and lengths of the parts.
        update: number of the update, from 0.

    >>> recipe = StageRecipe(updates=100, batch_size=1, learning_rate=1.0, warmup_updates=10, decay_fraction=0.5)
    >>> [round(learning_rate(recipe, update), 2) for update in (0, 9, 30, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    warmup = min(1.0, (update + 1) / recipe.warmup_updates)
    decay_updates = recipe.updates - decay_start(recipe)
    decay = min(1.0, (recipe.updates - update) / decay_updates) if decay_updates else 1.0
    return recipe.learning_rate * warmup * decay


def decay_start(recipe: StageRecipe) -> int:
    """Return the number of the update, from 0, at which the learning rate starts to decay."""
    return round(recipe.updates * (1 - recipe.decay_fraction))
