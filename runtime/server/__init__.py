"""OpenAI's API over HTTP. `app` has the routes; needs the extra `serve`."""
