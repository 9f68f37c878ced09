def screening_decode_tpu(*args, **kwargs):
    raise NotImplementedError("soon")
