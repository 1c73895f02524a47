"""The Open Inference Protocol V2 over HTTP: tensors and the signatures of models.

What reads requests and writes answers knows nothing of images; `classifier` presents the model that
is served as one of tensors. The routes are `service.routes.v2` and `v2_infer`.
"""
