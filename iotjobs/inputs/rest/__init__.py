"""The REST API: one router a subject, all below `/api/v1`.

A route names who may call (`services`), reads its body after that (`body`), does its work in one
function of a transaction, and answers (`answers`). Routers import the store and the engine; they
never import each other. Errors are raised and become problem+json in `inputs/problems`. Start at
`api` (how the application is put together), then `classes`, the simplest router.
"""
