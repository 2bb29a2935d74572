"One new picture, from wherever it comes, is prepared as those of the training."
import pytest
import torch
from PIL import Image


def test_predict_from_path_image_and_array(make_learner, pets, tmp_path):
    learn = make_learner()
    learn.fit(1, 1e-2)
    picture = pets.valid.pictures[5].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / 'pet.png')
    answers = [learn.predict(image) for image in (tmp_path / 'pet.png', str(tmp_path / 'pet.png'),
                                                  Image.fromarray(picture), picture)]
    x, _ = next(iter(pets.valid))
    expected = learn.model.eval()(x)[5].softmax(0)
    for label, probabilities in answers:
        assert torch.allclose(probabilities, expected, atol=1e-5)
        assert probabilities.shape == (12,) and probabilities.sum().item() == pytest.approx(1)
        assert label == pets.classes[int(expected.argmax())]


def test_predict_takes_photos_of_any_size(make_learner):
    answer = make_learner().predict(Image.new('L', (300, 100)))
    assert answer.probabilities.isfinite().all()


def test_predict_names_a_missing_file(make_learner):
    with pytest.raises(FileNotFoundError, match='no_such_pet.jpg'):
        make_learner().predict('no_such_pet.jpg')
