"""Requests: admitted, batched at step boundaries, answered; neither how a pipeline was made nor what runs it."""
