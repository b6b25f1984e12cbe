"""The learning rate over a stage."""

from stillhouse.fit.recipe import StageRecipe


def learning_rate(recipe: StageRecipe, update: int) -> float:
    """Warm-up, plateau, linear fall to zero.

    >>> recipe = StageRecipe(updates=100, batch=1, rate=1.0, warm_up=10, decay=0.5)
    >>> [round(learning_rate(recipe, update), 2) for update in (0, 9, 30, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    warm = min(1.0, (update + 1) / recipe.warmup_updates)
    falling = recipe.updates - decay_start(recipe)
    fall = min(1.0, (recipe.updates - update) / falling) if falling else 1.0
    return recipe.learning_rate * warm * fall


def decay_start(recipe: StageRecipe) -> int:
    """The update at which the learning rate starts to fall."""
    return round(recipe.updates * (1 - recipe.decay_fraction))
