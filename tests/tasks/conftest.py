from task_items import data, model, plain

__all__ = ["data", "model", "plain"]
